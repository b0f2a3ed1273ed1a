"""`classification`: one of several labels for a text or a series, with an encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Tokenizer

from .collate import padded, targets
from .inputs import SequenceInput, encode_input
from .labels import Label, LabelTask, rounded
from .losses import cross_entropy, full_precision


class LabelledRecord(SequenceInput):
    """A text or a series and its label, a whole number or a string."""

    label: Label


class Classification(LabelTask):
    """Predict which one of several labels a text or a series has, with an encoder. Labels are whole numbers or strings.

    Args:
        labels: the labels, in the order of the outputs; empty: all labels of the training records, sorted.
        features: mean and deviation of each feature of a series; learnt from the training records, empty for texts.
    """

    Record: ClassVar[type[BaseModel]] = LabelledRecord

    def stdlib(self) -> Iterable[tuple[str, LabelledRecord]]:
        """Docstrings, each labelled with the package it comes from."""
        return ((path, LabelledRecord(input=text, label=package)) for path, package, text in stdlib.docstrings())

    def labels_of(self, record: LabelledRecord) -> Iterable[Label]:
        return (record.label,)

    def encode(self, record: LabelledRecord, tokenizer: Tokenizer) -> Example:
        return Example(encode_input(record, tokenizer, self.features), self.index[record.label])

    def collate(self, examples: Sequence[Example]) -> Batch:
        inputs, layout = padded(examples)
        return Batch(inputs, layout, targets(label=[example.target for example in examples]))

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        return cross_entropy(head.summary(hidden, batch.layout), batch.targets["label"])

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        n = len(self.labels)
        return {"accuracy": MulticlassAccuracy(n, average="micro"), "f1": MulticlassF1Score(n, average="macro")}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        predicted = head.summary(hidden, batch.layout).argmax(dim=-1)
        for metric in metrics.values():
            metric.update(predicted, batch.targets["label"])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        common = Counter(example.target for example in train.examples).most_common(1)[0][0]
        hits = sum(example.target == common for example in held_out.examples)
        return {f"always {self.labels[common]!r}": {"accuracy": hits / len(held_out.examples)}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The likeliest label of each row, and the probability of every label."""
        probabilities = full_precision(head.summary(hidden, batch.layout)).softmax(dim=-1)
        return [{"label": self.labels[int(row.argmax())], "probabilities": rounded(self.labels, row)} for row in probabilities]
