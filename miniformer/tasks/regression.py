"""`regression`: a number for a text or a series, with an encoder. The number is learnt in standard deviations from the mean."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import AliasChoices, BaseModel, Field, model_validator
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .collate import padded, targets
from .inputs import Features, SequenceInput, encode_input, learn_features, scale_of, texts_of
from .losses import full_precision
from .metrics import R2, widest

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ValuedRecord(SequenceInput):
    """A text or a series and its number, called `value` or `label`."""

    value: Number = Field(validation_alias=AliasChoices("value", "label"))

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and {"value", "label"} <= data.keys():
            raise ValueError("'value' and 'label' are two names of the number; give one of them")
        return data


class Regression(Task):
    """Predict a number for a text or a series, with an encoder.

    Args:
        mean, std: mean and standard deviation of the training records' numbers, from which they are learnt.
        features: mean and deviation of each feature of a series; learnt from the training records, empty for texts.
    """

    Record: ClassVar[type[BaseModel]] = ValuedRecord
    Input: ClassVar[type[BaseModel] | None] = SequenceInput
    head: ClassVar[str] = "regression"

    def __init__(self, *, mean: float | None = None, std: Annotated[float, Field(gt=0)] | None = None,
                 features: Features = ()) -> None:
        self.fitted = mean is not None and std is not None
        self.mean, self.std, self.features = mean or 0.0, std or 1.0, features
        self.input_dim = len(features) or None

    def stdlib(self) -> Iterable[tuple[str, ValuedRecord]]:
        """Short functions and their numbers of parameters, which a reader can count in the text."""
        for where, node, source in stdlib.functions():
            yield where, ValuedRecord(input=source, value=float(parameters(node)))

    def fit(self, records: Iterable[ValuedRecord]) -> Mapping[str, Any]:
        records = list(records)
        learnt: dict[str, Any] = {} if self.features else learn_features(records)
        if not self.fitted:
            values = np.array([record.value for record in records])
            if values.min() == values.max():
                raise ValueError(f"every record has the value {values[0]:g}; expected at least two different values")
            mean, std = scale_of("value", values)
            if not std:
                one, other = float(values[0]), float(values[values != values[0]][0])
                raise ValueError(f"field 'value': the numbers are too near to each other to tell apart, such as {one!r} and "
                                 f"{other!r}; expected numbers that differ by more than rounding")
            learnt.update(mean=mean, std=std)
        return learnt

    def remarks(self, split: Split, name: str) -> Iterator[str]:
        values = {record.value for record in split.records}
        if len(split.records) > 1 and len(values) == 1:
            yield f"every {name} record has the value {values.pop():g}" + (
                "" if name == "training" else ", so r2 on them is 0 whatever a model says")

    def texts(self, record: ValuedRecord) -> Iterator[str]:
        return texts_of(record)

    def n_outputs(self, vocab_size: int) -> int:
        return 1

    def encode(self, record: ValuedRecord, tokenizer: Tokenizer) -> Example:
        value = (record.value - self.mean) / self.std
        if abs(value) > torch.finfo(torch.float32).max:
            raise ValueError(f"field 'value': too far from those of the training records; found {record.value:g}")
        return Example(encode_input(record, tokenizer, self.features), value)

    def question(self, record: SequenceInput, tokenizer: Tokenizer) -> Example:
        return Example(encode_input(record, tokenizer, self.features))

    def collate(self, examples: Sequence[Example]) -> Batch:
        inputs, layout = padded(examples)
        return Batch(inputs, layout, targets(value=[example.target for example in examples]))

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """The squared error, in units of the training records' variance; the weight is the number of rows."""
        predicted_B, right_B = self._predicted(hidden, head, batch), batch.targets["value"]
        return LossTerm(((predicted_B - right_B.to(predicted_B.dtype)) ** 2).sum(),
                        torch.tensor(len(right_B), device=right_B.device))

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        """Errors in the number's own unit, and the part of its variance that is explained."""
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2()}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        self._update(metrics, self._predicted(hidden, head, batch), batch.targets["value"])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        right = torch.tensor([example.target for example in held_out.examples], dtype=torch.float64)
        train_values = torch.tensor([example.target for example in train.examples], dtype=torch.float64)
        predicted = train_values.mean().expand_as(right)
        metrics = self.metrics(tokenizer)
        self._update(metrics, predicted, right)
        return {"the mean": {"loss": float(((predicted - right) ** 2).mean()),
                             **{name: float(metric.compute()) for name, metric in metrics.items()}}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The number of each row, in its own unit."""
        return [{"value": value * self.std + self.mean} for value in self._predicted(hidden, head, batch).tolist()]

    def _predicted(self, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
        """The predicted numbers `[B]`, in standard deviations from the mean."""
        return full_precision(head.summary(hidden, batch.layout))[:, 0]

    def _update(self, metrics: Mapping[str, Metric], predicted: Tensor, right: Tensor) -> None:
        predicted, right = (t.to(widest(t.device)) for t in (predicted, right))
        metrics["r2"].update(predicted, right)  # it has no unit, and is more exact on numbers near 0
        for name in ("mse", "mae"):
            metrics[name].update(predicted * self.std + self.mean, right * self.std + self.mean)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters of a function."""
    args = node.args
    return len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs) + bool(args.vararg) + bool(args.kwarg)
