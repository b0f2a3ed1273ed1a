"""Normalisation: layer norm and root-mean-square norm."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from miniformer.kernel.interfaces import Norm


class LayerNorm(Norm):
    """Zero mean and unit variance, then a learned scale and shift (Ba 2016, arXiv:1607.06450).

    Args:
        eps: added to the variance.
        bias: learn a shift.
    """

    def __init__(self, d_model: int, *, eps: Annotated[float, Field(gt=0)] = 1e-5, bias: bool = True) -> None:
        super().__init__(d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.d_model,), self.weight, self.bias, self.eps)


class RMSNorm(Norm):
    """Unit root mean square, then a learned scale (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, *, eps: Annotated[float, Field(gt=0)] = 1e-6) -> None:
        super().__init__(d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.d_model,), self.weight, self.eps)
