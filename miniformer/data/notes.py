"""What a user should know of data before a model is trained or measured on them: what is cut, empty, a copy, or too little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miniformer.kernel.errors import DataError
from miniformer.kernel.task import Example, Split, Task

from . import stdlib
from .packing import Documents
from .records import Located

NAMES = {"train": "training", "val": "held-out", "test": "test"}
"""What the splits are called in a sentence."""
FEW = 20
"""Records below which a figure measured on them says little."""
MANY_TOKENS = 10_000
"""Tokens that are enough to measure on in however few texts, where each token is predicted."""


@dataclass(slots=True)
class Cuts:
    """Counts examples, and those of them that were cut to `limit` tokens."""

    limit: int
    texts: bool = True
    total: int = 0
    cut: int = 0
    longest: int = 0

    def add(self, examples: Iterable[Example]) -> None:
        """Count some more examples."""
        for example in examples:
            self.total += 1
            if example.uncut:
                self.cut, self.longest = self.cut + 1, max(self.longest, example.uncut)

    def notes(self) -> Iterator[str]:
        """A sentence, if any was cut."""
        if self.cut:
            what, unit = ("texts", "tokens") if self.texts else ("series", "steps")
            yield (f"{self.cut:,} of {self.total:,} {what} {'was' if self.cut == 1 else 'were'} cut to {self.limit:,} {unit}, "
                   f"the longest from {self.longest:,}; a model with a larger max_seq_len reads more of them")


def data_notes(task: Task, files: Mapping[str, str], records: Mapping[str, Sequence[Located]], splits: Mapping[str, Split],
               limit: int | None) -> Iterator[str]:
    """What a user should know of the data of a run, a sentence each, which begins with the name of the file.

    Args:
        task: the task, fitted.
        files: the file of each split, by the split's name; part of the training file may be held out.
        records, splits: the records and the examples of each split; `val` is missing if it is the training data itself.
        limit: tokens to which examples were cut; None: they are not cut.

    Raises:
        DataError: a split has nothing to learn from or to measure on.
    """
    for name, split in splits.items():
        if reason := nothing_in(task, split):
            purpose = "learn from" if name == "train" else "measure on"
            raise DataError(f"{files[name]}: nothing to {purpose} in the {NAMES[name]} records: {reason}")
    for file, names in _by_file(files, splits).items():
        for note in _on_file(task, file, [splits[name] for name in names], [records[name] for name in names], limit):
            yield f"{file}: {note}"
    for name, split in splits.items():
        if files[name] != stdlib.NAME:
            few = [] if name == "train" else too_few(task, len(split.records), split.examples, NAMES[name])
            yield from (f"{files[name]}: {note}" for note in [*few, *task.remarks(split, NAMES[name])])
    if "val" not in splits:
        yield f"{files['train']}: this is also val_path, so figures are those of records that the model has seen"
    trained_on = {located.digest for located in records["train"]}
    for name in splits:
        seen = sum(located.digest in trained_on for located in records[name])
        if seen and name != "train":
            yield (f"{files[name]}: {seen:,} of {len(records[name]):,} {NAMES[name]} records are in the training data too, so "
                   "figures flatter the model")


def _by_file(files: Mapping[str, str], splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """The names of the splits that make up each file. A file that is given twice is counted once."""
    names: dict[str, list[str]] = {}
    for name in splits:
        if files[name] not in names or (name == "val" and files["val"] == files["train"]):
            names.setdefault(files[name], []).append(name)
    return names


def _on_file(task: Task, file: str, splits: Sequence[Split], records: Sequence[Sequence[Located]],
             limit: int | None) -> Iterator[str]:
    if limit is not None and not task.packs:
        cuts = Cuts(limit, texts=task.input_dim is None)
        for split in splits:
            cuts.add(split.examples)
        yield from cuts.notes()
    if file == stdlib.NAME:  # users cannot change what is in it
        return
    count = sum(map(len, records))
    if blank := sum(is_blank(task, record) for split in splits for record in split.records):
        yield f"{blank:,} of {count:,} texts {'is' if blank == 1 else 'are'} empty"
    if copies := count - len({located.digest for part in records for located in part}):
        yield f"{copies:,} of {count:,} records {'is a copy of another' if copies == 1 else 'are copies of others'}"


def nothing_in(task: Task, split: Split) -> str | None:
    """Why nothing can be learnt from a split, or measured on it; None: something can."""
    if all(is_blank(task, record) for record in split.records):
        return "all texts are empty; expected some text"
    return task.unmeasurable(split.examples)


def too_few(task: Task, count: int, examples: Sequence[Example], name: str) -> Iterator[str]:
    """A sentence, if records are too few to measure on."""
    each_token_is_predicted = task.n_outputs(MANY_TOKENS) == MANY_TOKENS
    if count >= FEW or (each_token_is_predicted and _tokens(examples) >= MANY_TOKENS):
        return
    records, them = ("record", "it") if count == 1 else ("records", "them")
    yield f"only {count} {name} {records}, so a figure measured on {them} says little"


def _tokens(examples: Sequence[Example]) -> int:
    if isinstance(examples, Documents):
        return sum(examples.lengths)
    return sum(len(example.tokens) for example in examples)


def is_blank(task: Task, record: Any) -> bool:
    """Whether a record has texts, and nothing but spaces in them."""
    try:
        texts = list(task.texts(record))
    except ValueError:  # `examples` reports what a task refuses
        return False
    return bool(texts) and not any(text and not text.isspace() for text in texts)
