"""Labels, whole numbers or strings, and the base class of the tasks that label a whole input."""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar

from pydantic import BaseModel, StrictInt, StrictStr
from torch import Tensor

from miniformer.kernel.errors import did_you_mean
from miniformer.kernel.task import Example, Split, Task, Tokenizer

from .inputs import Features, SequenceInput, encode_input, learn_features, texts_of

Label = StrictInt | StrictStr
LISTED = 5
"""The most labels that a sentence lists."""


class LabelIndex(dict[Label, int]):
    """The output that belongs to each label. Looking up an unknown label is an error that names the nearest one.

    Raises:
        ValueError: a label occurs twice, or two are written alike (1 and "1"): predictions have the written label as key.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        super().__init__((label, i) for i, label in enumerate(labels))
        if len(self) < len(labels):
            raise ValueError(f"labels: {Counter(labels).most_common(1)[0][0]!r} occurs twice")
        for label in labels:
            if isinstance(label, int) and str(label) in self:
                raise ValueError(f"labels: {label!r} and {str(label)!r} are written alike: {difference(label, str(label))}; "
                                 "write all of them in one way")

    def __missing__(self, label: Label) -> int:
        same = ((known, what) for known in self if (what := difference(label, known)))
        known, what = next(same, (None, ""))
        near = (f"; {known!r} is, and {what}; write them alike in all files" if what else
                did_you_mean(str(label), map(str, self)))
        raise ValueError(f"label {label!r} is not one of the {len(self)} in the training data{near}")


class Choice(LabelIndex):
    """The outputs of labels that exclude each other, of which a softmax chooses one."""

    def __init__(self, labels: Sequence[Label]) -> None:
        if len(labels) == 1:
            raise ValueError(f"labels: {labels[0]!r} is the only one, so that every prediction would be it with probability 1; "
                             "expected at least two different labels")
        super().__init__(labels)


class LabelTask(Task):
    """A task that labels a text or a series. It learns the labels, and the scale of features, from the training records."""

    Input: ClassVar[type[BaseModel] | None] = SequenceInput
    head: ClassVar[str] = "classification"

    def __init__(self, *, labels: tuple[Label, ...] = (), features: Features = ()) -> None:
        self.labels, self.features = labels, features
        self.index = self.indexed(labels)
        self.input_dim = len(features) or None

    def indexed(self, labels: Sequence[Label]) -> LabelIndex:
        """The outputs of the labels."""
        return Choice(labels)

    @abstractmethod
    def labels_of(self, record: Any) -> Iterable[Label]:
        """The labels of a record."""

    def learn(self, records: Sequence[Any]) -> list[Label]:
        """The labels of the training records."""
        return learn_labels(label for record in records for label in self.labels_of(record))

    def fit(self, records: Iterable[Any]) -> Mapping[str, Any]:
        records = list(records)
        learnt: dict[str, Any] = {}
        if not self.labels:
            learnt["labels"] = self.learn(records)
        if not self.features:
            learnt.update(learn_features(records))
        return learnt

    def texts(self, record: Any) -> Iterator[str]:
        return texts_of(record)

    def n_outputs(self, vocab_size: int) -> int:
        return len(self.labels)

    def remarks(self, split: Split, name: str) -> Iterator[str]:
        answers = [frozenset(self.labels_of(record)) for record in split.records]
        return label_remarks(self.labels, Counter(label for answer in answers for label in answer), set(answers), name)

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        return Example(encode_input(record, tokenizer, self.features))


def learn_labels(occurrences: Iterable[Label]) -> list[Label]:
    """The different labels, sorted, numbers first.

    Raises:
        ValueError: there are fewer than two labels, or two that are written alike.
    """
    labels = in_order(occurrences)
    if len(labels) < 2:
        what = f"every record has the label {labels[0]!r}" if labels else "no record has a label"
        raise ValueError(f"{what}; expected at least two different labels")
    LabelIndex(labels)
    return labels


def in_order(labels: Iterable[Label]) -> list[Label]:
    """The different labels, sorted, numbers first."""
    return sorted(set(labels), key=lambda label: (isinstance(label, str), label))


def label_remarks(labels: Sequence[Label], counts: Mapping[Label, int], answers: Set[Set[Label]], name: str) -> Iterator[str]:
    """What a user should know of the labels of some records, a sentence each.

    Args:
        labels: all labels of the task.
        counts: how often each occurs in the records.
        answers: the different answers, each a set of labels.
        name: what the records are called in a sentence.
    """
    if name != "training":
        if len(answers) == 1:
            [answer] = answers
            yield (f"every {name} record has {named_labels(in_order(answer))}, so figures on them do not tell whether a model "
                   "can tell labels apart")
        return
    alike: dict[str, list[Label]] = {}
    for label in labels:
        alike.setdefault(_plain(label), []).append(label)
    for pair in [group[:2] for group in alike.values() if len(group) > 1][:LISTED]:
        yield f"{pair[0]!r} and {pair[1]!r} are two labels: {difference(*pair)}"
    for count, where in ((1, "occur{s} once in the training records"), (0, "{is_or_are} in no training record")):
        if found := [label for label in labels if counts.get(label, 0) == count]:
            one = len(found) == 1
            verb = where.format(s="s" if one else "", is_or_are="is" if one else "are")
            yield f"{len(found):,} of {len(labels):,} labels {verb}: {listed(found)}"


def named_labels(labels: Sequence[Label]) -> str:
    """Labels with the word for them."""
    return f"the label{'' if len(labels) == 1 else 's'} {listed(labels)}" if labels else "no label"


def listed(labels: Sequence[Label]) -> str:
    """The first few labels, and how many more there are."""
    more = len(labels) - LISTED
    return ", ".join(map(repr, labels[:LISTED])) + (f" and {more:,} more" if more > 0 else "")


def difference(label: Label, other: Label) -> str:
    """What tells two labels apart that a reader would take for one; empty if nobody would."""
    if isinstance(label, str) != isinstance(other, str):
        return "one is a number, the other a text" if _number(label) == _number(other) is not None else ""
    if label == other or _plain(label) != _plain(other):
        return ""
    one, two = str(label), str(other)
    if "".join(one.split()) == "".join(two.split()):
        return "they differ in spaces alone"
    if unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", two):
        return f"they look alike, and differ in their Unicode form, {one!a} and {two!a}"
    if one.casefold() == two.casefold():
        return "they differ in capital letters alone"
    return "they look almost alike"


def _plain(label: Label) -> str:
    """A label without what readers overlook: capital letters, spaces, and the form of Unicode."""
    return "".join(unicodedata.normalize("NFKC", str(label)).casefold().split())


def _number(label: Label) -> float | None:
    """The number that a label is, or that it says as a text."""
    try:
        return float(label)
    except (ValueError, OverflowError):
        return None


def rounded(labels: Sequence[Label], probabilities: Tensor) -> dict[str, float]:
    """Probabilities `[C]` by label, to six places."""
    return {str(label): round(p, 6) for label, p in zip(labels, probabilities.tolist(), strict=True)}
