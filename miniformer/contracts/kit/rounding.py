"""How far numbers of a dtype may be apart: in units of the dtype's own rounding, relative to the size of what is compared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .properties import Broken

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
LOW = (torch.bfloat16, torch.float32)
"""The dtypes that models are trained in."""


def eps(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number."""
    return torch.finfo(dtype).eps


def summing_eps(dtype: torch.dtype) -> float:
    """The rounding of sums that are taken in float32 at least."""
    return min(eps(dtype), eps(torch.float32))


def size_of(tensor: Tensor) -> float:
    """The largest absolute value; 0 of an empty tensor."""
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def require_near(actual: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    """Require that no number is further than `allowed` from the expected one, and none is NaN.

    Raises:
        Broken: one is; the text says `what` differs, and by how much.
    """
    difference = size_of(actual.double() - expected.double())
    if not difference <= allowed:
        raise Broken(f"{what}: {difference:.1e} apart, of outputs of size {size_of(expected):.1e}")


def in_both_precisions(module: nn.Module, dtype: torch.dtype) -> tuple[Any, Any]:
    """A copy of a float64 module in `dtype`, and one in float64 whose parameters are rounded to it too.

    So outputs of the two differ by the rounding of the computation, and of what the module keeps as a buffer.
    """
    low, exact = copy.deepcopy(module).to(dtype), copy.deepcopy(module)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    return low, exact


def error_of_tokens(actual: Tensor, exact: Tensor) -> Tensor:
    """`[N]`: the largest error of each output vector, relative to the root mean square of all outputs.

    Outputs that are smaller than a tenth, such as the logarithm of the only class's weight, count as a tenth: they are what is
    left of larger numbers. An error that is NaN counts as infinite.
    """
    size = exact.double().square().mean().sqrt().clamp(min=0.1)
    error = (actual.double() - exact.double()).abs() / size
    return error.flatten(0, -2).amax(dim=-1).nan_to_num(nan=torch.inf)
