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
    """The float type in which a device keeps sums over many batches."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def placed(metric: Metric, device: torch.device) -> Metric:
    """A metric on a device, its sums as wide as they can be there."""
    return metric.set_dtype(widest(device)).to(device) if device.type in NO_FLOAT64 else metric.to(device)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which cannot write infinity or NaN: they become null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class LossRatio(Metric):
    """A summed loss in nats over a count of something, and a function of the ratio."""

    higher_is_better = False
    nats: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, count: Tensor) -> None:
        """Add a batch."""
        self.nats += nats.detach().to(self.nats.dtype)
        self.count += count.to(self.count.dtype)

    def compute(self) -> Tensor:
        """The mean, in nats."""
        return self.nats / self.count


class Perplexity(LossRatio):
    """exp of the mean loss of a token."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerByte(LossRatio):
    """Bits to encode one byte of the text, comparable between tokenizers. A measurement without any text counts as one byte."""

    def compute(self) -> Tensor:
        return self.nats / self.count.clamp(min=1) / math.log(2)
