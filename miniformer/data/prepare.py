"""From the data settings of a run to examples: read, split, learn labels, get a tokenizer, encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from miniformer.kernel.errors import DataError
from miniformer.kernel.renamed import old_attributes
from miniformer.kernel.spec import ComponentSpec, build, resolve
from miniformer.kernel.task import Example, Split, Task

from .encoding import examples_of
from .jsonl import named
from .notes import data_notes
from .packing import Documents, gathered
from .records import Located, hold_out, read, some_text
from .tokenizer import NoTokenizer, Tokenizer

TOKENIZER_BYTES = 8_000_000
"""The most characters that a tokenizer is trained on; more would change only few merges."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a run, and the task and tokenizer that were fitted to them.

    Attributes:
        task_spec, task: the task, with the options that the training records decide, such as its labels.
        tokenizer: the one passed in, or one trained on the training texts; it has no tokens if the inputs are features.
        train, val, test: the records of each split and their examples.
        fingerprint: digests and counts of the records, to check whether two runs used the same data.
        lines: for each split by name, the offsets in bytes at which the lines of its records begin in their file.
        notes: what a user should know of the data before training, a sentence each.
    """

    task_spec: ComponentSpec
    task: Task
    tokenizer: Tokenizer
    train: Split
    val: Split
    test: Split | None
    fingerprint: dict[str, Any]
    lines: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name. `val` is missing if it is the training data itself."""
        return {name: getattr(self, name) for name in self.lines}


def prepare_data(task_spec: ComponentSpec, train_path: str, val_path: str | None = None, test_path: str | None = None, *,
                 val_fraction: float = 0.05, tokenizer: Tokenizer | None = None, vocab_size: int = 4096,
                 max_len: int | None = None) -> PreparedData:
    """Read and encode a run's data.

    Args:
        task_spec: the task, in resolved form.
        train_path, val_path, test_path: JSONL files, `stdlib` (the embedded corpus), or `-` (standard input, which is read
            once). Without `val_path`, part of the training records is held out.
        val_fraction: the part that is held out.
        tokenizer: the tokenizer; if None, one of `vocab_size` tokens is trained on the training texts.
        max_len: longest example in tokens. Longer ones are cut, unless the task packs documents into rows.

    Raises:
        DataError: a file or a record cannot be used, or there is nothing in them to learn from or to measure on; the message
            names the file, and the line if there is one.
    """
    task = build(Task, task_spec)
    everything, train_fingerprint = read(train_path, task)
    train, fingerprint = everything, {"train": train_fingerprint}
    if val_path is None:
        train, val = hold_out(everything, val_fraction, named(train_path))
    elif val_path == train_path:
        val, fingerprint["val"] = train, train_fingerprint
    else:
        val, fingerprint["val"] = read(val_path, task)
    test = None
    if test_path is not None:
        test, fingerprint["test"] = read(test_path, task)
    try:
        # from all records, held-out ones too: else a rare label whose records are all held out would be unknown
        learnt = task.fit([located.record for located in everything])
    except ValueError as error:
        raise DataError(f"{named(train_path)}: {error}") from None
    task, spec = _with(task_spec, learnt)
    if task.input_dim is not None:
        if tokenizer is not None:
            raise DataError(f"{named(train_path)}: the inputs are numbers, which need no tokenizer; leave it out")
        tokenizer = NoTokenizer()
    tokenizer = tokenizer or Tokenizer.train(some_text(task, train, TOKENIZER_BYTES), vocab_size)
    try:
        task, spec = _with(spec, task.fit_tokenizer(tokenizer))
    except ValueError as error:
        raise DataError(f"tokenizer: {error}") from None
    records = {"train": train, **({} if val is train else {"val": val}), **({} if test is None else {"test": test})}
    splits = {name: _split(task, located, tokenizer, max_len) for name, located in records.items()}
    lines = {name: np.array([record.start for record in located]) for name, located in records.items()}
    files = {"train": named(train_path), "val": named(val_path or train_path), "test": named(test_path or train_path)}
    notes = tuple(data_notes(task, files, records, splits, max_len))
    return PreparedData(spec, task, tokenizer, splits["train"], splits.get("val", splits["train"]), splits.get("test"),
                        fingerprint, lines, notes)


def _with(spec: ComponentSpec, learnt: Mapping[str, Any]) -> tuple[Task, ComponentSpec]:
    """The task and its spec, with the options in `learnt` filled in."""
    spec = resolve("task", {"name": spec.name, **spec.options, **learnt})
    return build(Task, spec), spec


def _split(task: Task, records: Sequence[Located], tokenizer: Tokenizer, max_len: int | None) -> Split:
    """Records and their examples, cut to `max_len` tokens. A task that packs gets one stream, which is cut into rows later."""
    examples = examples_of(task, records, tokenizer, None if task.packs else max_len)
    return Split([located.record for located in records], gathered(examples) if task.packs else list(examples))


def token_counts(examples: Sequence[Example]) -> Mapping[str, int]:
    """The number of examples and of tokens."""
    return {"examples": len(examples), "tokens": sum(token_lengths(examples))}


def token_lengths(examples: Sequence[Example]) -> list[int]:
    """The number of tokens of each example, its source included."""
    if isinstance(examples, Documents):
        return examples.lengths
    return list(map(n_tokens, examples))


def n_tokens(example: Example) -> int:
    """The number of tokens of an example, its source included."""
    return len(example.tokens) + (0 if example.source is None else len(example.source))


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
