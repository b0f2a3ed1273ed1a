"""`multilabel`: any number of several labels for a text or a series, with an encoder.

It uses the classification head, which gives a score for each label. Only the loss differs: here labels do not exclude each
other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, field_validator
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, MultilabelExactMatch, MultilabelF1Score

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Tokenizer

from .collate import padded, targets
from .inputs import SequenceInput, encode_input
from .labels import Label, LabelIndex, LabelTask, in_order, named_labels, rounded
from .losses import full_precision

CONSTRUCTS: dict[str, tuple[type[ast.AST], ...]] = {
    "branch": (ast.If, ast.IfExp, ast.Match), "comprehension": (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    "exception": (ast.Try, ast.Raise), "import": (ast.Import, ast.ImportFrom), "lambda": (ast.Lambda,),
    "loop": (ast.For, ast.AsyncFor, ast.While), "with": (ast.With, ast.AsyncWith), "yield": (ast.Yield, ast.YieldFrom)}
"""The labels of the embedded records: the kinds of construct that a function has."""


class MultilabelRecord(SequenceInput):
    """A text or a series and its labels, each a whole number or a string. It may have no labels."""

    labels: list[Label]

    @field_validator("labels")
    @classmethod
    def _once_each(cls, labels: list[Label]) -> list[Label]:
        if len(set(labels)) < len(labels):
            raise ValueError(f"label {next(label for label in labels if labels.count(label) > 1)!r} occurs twice")
        return labels


class Multilabel(LabelTask):
    """Predict which of several labels a text or a series has, with an encoder. It may have any number of them, or none.

    Args:
        labels: the labels, in the order of the outputs; empty: all labels of the training records, sorted.
        features: mean and deviation of each feature of a series; learnt from the training records, empty for texts.
    """

    Record: ClassVar[type[BaseModel]] = MultilabelRecord

    def stdlib(self) -> Iterable[tuple[str, MultilabelRecord]]:
        """Short functions, labelled with the kinds of construct that are in them."""
        for where, node, source in stdlib.functions():
            kinds = {type(inner) for inner in ast.walk(node)}
            yield where, MultilabelRecord(input=source, labels=[n for n, types in CONSTRUCTS.items() if kinds & set(types)])

    def indexed(self, labels: Sequence[Label]) -> LabelIndex:
        """The outputs of the labels. A single one is enough, since a record may have it or not."""
        return LabelIndex(labels)

    def labels_of(self, record: MultilabelRecord) -> Iterable[Label]:
        return record.labels

    def learn(self, records: Sequence[MultilabelRecord]) -> list[Label]:
        answers = {frozenset(record.labels) for record in records}
        labels = in_order(label for answer in answers for label in answer)
        if len(answers) == 1:
            what = f"every record has {named_labels(labels)}" if labels else "no record has a label"
            raise ValueError(f"{what}; expected records that differ in their labels")
        return list(self.indexed(labels))

    def encode(self, record: MultilabelRecord, tokenizer: Tokenizer) -> Example:
        places = [self.index[label] for label in record.labels]
        return Example(encode_input(record, tokenizer, self.features), [float(i in places) for i in range(len(self.labels))])

    def collate(self, examples: Sequence[Example]) -> Batch:
        inputs, layout = padded(examples)
        return Batch(inputs, layout, targets(labels=[example.target for example in examples]))

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """Binary cross-entropy, in nats; the weight is the number of yes-or-no answers, rows x labels."""
        scores_BC, labels_BC = full_precision(head.summary(hidden, batch.layout)), batch.targets["labels"]
        return LossTerm(F.binary_cross_entropy_with_logits(scores_BC, labels_BC.to(scores_BC.dtype), reduction="sum"),
                        torch.tensor(labels_BC.numel(), device=labels_BC.device))

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        n = len(self.labels)
        if n == 1:  # the metrics for several labels refuse a single one
            return {"f1_micro": BinaryF1Score(), "f1_macro": BinaryF1Score(), "subset_accuracy": BinaryAccuracy()}
        return {"f1_micro": MultilabelF1Score(n, average="micro"), "f1_macro": MultilabelF1Score(n, average="macro"),
                "subset_accuracy": MultilabelExactMatch(n)}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        predicted = (head.summary(hidden, batch.layout) > 0).long()
        for metric in metrics.values():
            metric.update(predicted, batch.targets["labels"].long())

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """Give every record one answer: the labels that more than half of the training records have, or all labels."""
        train_labels, labels = (torch.tensor([example.target for example in split.examples]) for split in (train, held_out))
        answers = {"the commonest labels": train_labels.mean(dim=0) > 0.5, "all labels": torch.ones(len(self.labels))}
        scores: dict[str, dict[str, float]] = {}
        for name, answer in answers.items():
            metrics = self.metrics(tokenizer)
            for metric in metrics.values():
                metric.update(answer.long().expand(len(labels), -1), labels.long())
            scores[name] = {metric: float(value.compute()) for metric, value in metrics.items()}
        return scores

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The labels of each row that are likelier than not, and the probability of every label."""
        probabilities_BC = full_precision(head.summary(hidden, batch.layout)).sigmoid()
        return [{"labels": [label for label, p in zip(self.labels, row, strict=True) if p > 0.5],
                 "probabilities": rounded(self.labels, row)} for row in probabilities_BC]
