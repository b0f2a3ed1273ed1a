"""`classification`: one of several labels for a text, with an encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, StrictInt, StrictStr
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from miniformer.data import stdlib
from miniformer.kernel.errors import did_you_mean
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .collate import padded
from .losses import cross_entropy, full_precision

Label = StrictInt | StrictStr


class LabelledRecord(BaseModel):
    """A text and its label, a whole number or a string."""

    input: str
    label: Label


class Classification(Task):
    """Say which of several labels a text has (an encoder); labels are numbers or strings.

    Args:
        labels: the labels, in the order of the outputs; empty: those that the training records have, sorted.
    """

    Record: ClassVar[type[BaseModel]] = LabelledRecord
    head: ClassVar[str] = "classification"

    def __init__(self, *, labels: tuple[Label, ...] = ()) -> None:
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels: {Counter(labels).most_common(1)[0][0]!r} occurs twice")
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}
        for label in labels:
            if isinstance(label, int) and str(label) in self.index:  # predictions are keyed by what is written
                raise ValueError(f"labels: {label!r} and {str(label)!r} are written alike")

    def stdlib(self) -> Iterable[tuple[str, LabelledRecord]]:
        """Docstrings, labelled with the package that they are from."""
        return ((path, LabelledRecord(input=text, label=package)) for path, package, text in stdlib.docstrings())

    def fit(self, records: Iterable[LabelledRecord]) -> Mapping[str, Any]:
        if self.labels:
            return {}
        labels = sorted({record.label for record in records}, key=lambda label: (isinstance(label, str), label))
        if len(labels) < 2:
            raise ValueError(f"every record has the label {labels[0]!r}; expected at least two different labels")
        Classification(labels=tuple(labels))  # refuses what cannot be told apart
        return {"labels": labels}

    def texts(self, record: LabelledRecord) -> Iterator[str]:
        yield record.input

    def n_outputs(self, vocab_size: int) -> int:
        return len(self.labels)

    def encode(self, record: LabelledRecord, tokenizer: Tokenizer) -> Example:
        if record.label not in self.index:
            near = did_you_mean(str(record.label), map(str, self.labels))
            raise ValueError(f"label {record.label!r} is not one of the {len(self.labels)} in the training data{near}")
        ids = tokenizer.encode(record.input)
        if not ids:
            raise ValueError("field 'input' has no tokens; expected some text")
        return Example(ids, self.index[record.label])

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens, layout = padded(examples)
        return Batch(tokens, layout, {"label": torch.tensor([example.target for example in examples])})

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        return cross_entropy(head.summary(hidden, batch.layout), batch.targets["label"])

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        n = len(self.labels)
        return {"accuracy": MulticlassAccuracy(n, average="micro"), "f1": MulticlassF1Score(n, average="macro")}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        chosen = head.summary(hidden, batch.layout).argmax(dim=-1)
        for metric in metrics.values():
            metric.update(chosen, batch.targets["label"])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        common = Counter(example.target for example in train.examples).most_common(1)[0][0]
        hits = sum(example.target == common for example in held_out.examples)
        return {f"always {self.labels[common]!r}": {"accuracy": hits / len(held_out.examples)}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The likeliest label of each row, and the probability of every label."""
        probabilities = full_precision(head.summary(hidden, batch.layout)).softmax(dim=-1)
        return [{"label": self.labels[int(row.argmax())],
                 "probabilities": {str(label): round(float(p), 6) for label, p in zip(self.labels, row, strict=True)}}
                for row in probabilities]
