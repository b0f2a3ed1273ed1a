"""Losses that tasks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.task import LossTerm


def cross_entropy(logits: Tensor, targets: Tensor) -> LossTerm:
    """The summed cross-entropy, in nats, of logits `[N, C]` and classes `[N]`; the weight is N."""
    return LossTerm(F.cross_entropy(full_precision(logits), targets, reduction="sum"),
                    torch.tensor(len(targets), device=targets.device))


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32 where it is in half precision, whose sums of many terms are too coarse."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
