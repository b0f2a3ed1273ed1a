"""In what precision losses and probabilities are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in single precision at least: halves are widened, doubles stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
