"""Losses that tasks share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import LossTerm


def cross_entropy(logits: Tensor, targets: Tensor) -> LossTerm:
    """The summed cross-entropy, in nats, of logits `[N, C]` and classes `[N]`; the weight is N."""
    return LossTerm(F.cross_entropy(full_precision(logits), targets, reduction="sum"),
                    torch.tensor(len(targets), device=targets.device))


def next_tokens(hidden: Tensor, head: Head, following: Tensor) -> LossTerm:
    """The summed loss, in nats, of predicting the next token. `following` `[B, T]` holds it, or -1 where no token follows."""
    return LossTerm(head.cross_entropy(hidden, following), (following >= 0).sum())


def row_losses(hidden: Tensor, head: Head, following: Tensor) -> list[dict[str, Any]]:
    """The summed next-token loss of each row, in nats, and the number of tokens in that sum."""
    nats = F.cross_entropy(full_precision(head(hidden)).flatten(0, 1), following.flatten(), ignore_index=-1,
                           reduction="none").detach().view_as(following)
    counts = (following >= 0).sum(dim=1)
    return [{"nats": float(row.sum()), "tokens": int(n)} for row, n in zip(nats.detach(), counts, strict=True)]


def full_precision(x: Tensor) -> Tensor:
    """`x`, in float32 if it is in half precision: sums of many terms need more digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
