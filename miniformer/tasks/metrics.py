"""Metrics that follow from a summed loss, kept exact over batches and processes by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

NO_FLOAT64 = {"mps"}
"""Types of device without float64."""


def widest(device: torch.device) -> torch.dtype:
    """The widest float type of a device, for sums over many batches."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def placed(metric: Metric, device: torch.device) -> Metric:
    """The metric on a device. Its sums keep their type, unless the device lacks it."""
    return metric.set_dtype(widest(device)).to(device) if device.type in NO_FLOAT64 else metric.to(device)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no infinity and no NaN: both become null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class LossRatio(Metric):
    """A summed loss in nats, divided by a count, such as that of tokens; subclasses convert the ratio."""

    higher_is_better = False
    nats: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, count: Tensor) -> None:
        """Add the summed loss and the count of a batch."""
        self.nats += nats.detach().to(self.nats.dtype)
        self.count += count.to(self.count.dtype)

    def compute(self) -> Tensor:
        """The mean, in nats."""
        return self.nats / self.count


class Perplexity(LossRatio):
    """Perplexity: exp of the mean loss per token."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class R2(Metric):
    """The share of the numbers' variance that is explained; 0 where they have none, as a single record has not."""

    higher_is_better = True
    count: Tensor
    total: Tensor
    squares: Tensor
    errors: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("count", "total", "squares", "errors"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, right: Tensor) -> None:
        """Add predictions and right numbers, `[B]` each."""
        predicted, right = (numbers.detach().to(self.total.dtype) for numbers in (predicted, right))
        self.count += len(right)
        self.total += right.sum()
        self.squares += (right ** 2).sum()
        self.errors += ((right - predicted) ** 2).sum()

    def compute(self) -> Tensor:
        spread = self.squares - self.total ** 2 / self.count.clamp(min=1)
        rounding = 64 * torch.finfo(spread.dtype).eps * self.squares  # equal numbers leave about so much, and seldom 0
        return torch.where(spread > rounding, 1 - self.errors / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0)


class BitsPerByte(LossRatio):
    """Bits per byte of text, which tokenizers with different vocabularies can be compared by. No text counts as one byte."""

    def compute(self) -> Tensor:
        return self.nats / self.count.clamp(min=1) / math.log(2)
