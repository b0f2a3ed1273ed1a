"""Labels, whole numbers or strings, and the base class of the tasks that label a whole input."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, StrictInt, StrictStr
from torch import Tensor

from miniformer.kernel.errors import did_you_mean
from miniformer.kernel.task import Example, Task, Tokenizer

from .inputs import Features, SequenceInput, encode_input, learn_features, texts_of

Label = StrictInt | StrictStr


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
                raise ValueError(f"labels: {label!r} and {str(label)!r} are written alike")

    def __missing__(self, label: Label) -> int:
        near = did_you_mean(str(label), map(str, self))
        raise ValueError(f"label {label!r} is not one of the {len(self)} in the training data{near}")


class LabelTask(Task):
    """A task that labels a text or a series. It learns the labels, and the scale of features, from the training records."""

    Input: ClassVar[type[BaseModel] | None] = SequenceInput
    head: ClassVar[str] = "classification"

    def __init__(self, *, labels: tuple[Label, ...] = (), features: Features = ()) -> None:
        self.labels, self.features = labels, features
        self.index = LabelIndex(labels)
        self.input_dim = len(features) or None

    @abstractmethod
    def labels_of(self, record: Any) -> Iterable[Label]:
        """The labels of a record."""

    def fit(self, records: Iterable[Any]) -> Mapping[str, Any]:
        records = list(records)
        learnt: dict[str, Any] = {}
        if not self.labels:
            learnt["labels"] = learn_labels(label for record in records for label in self.labels_of(record))
        if not self.features:
            learnt.update(learn_features(records))
        return learnt

    def texts(self, record: Any) -> Iterator[str]:
        return texts_of(record)

    def n_outputs(self, vocab_size: int) -> int:
        return len(self.labels)

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        return Example(encode_input(record, tokenizer, self.features))


def learn_labels(occurrences: Iterable[Label]) -> list[Label]:
    """The different labels, sorted, numbers first.

    Raises:
        ValueError: there are fewer than two labels, or two that are written alike.
    """
    labels = sorted(set(occurrences), key=lambda label: (isinstance(label, str), label))
    if len(labels) < 2:
        what = f"every record has the label {labels[0]!r}" if labels else "no record has a label"
        raise ValueError(f"{what}; expected at least two different labels")
    LabelIndex(labels)
    return labels


def rounded(labels: Sequence[Label], probabilities: Tensor) -> dict[str, float]:
    """Probabilities `[C]` by label, to six places."""
    return {str(label): round(p, 6) for label, p in zip(labels, probabilities.tolist(), strict=True)}
