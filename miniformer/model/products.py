"""Matrix products in float32 on a CPU by oneDNN, which torch has and asks for half precision only.

Where a processor has AVX512 but is not the one that MKL is tuned for, oneDNN is about twice as fast (measured: 246 against
115 GFLOP/s on a core). Inside `fast_products` every `F.linear` of enough work is one of its products, forward and backward,
whichever component calls it; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROWS, ENOUGH = 4, 3 << 19
"""Rows and multiplications from which on it is the faster one, as measured."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, `[..., I], [O, I], [O] -> [..., O]`, the fastest way; without gradients."""
    if _takes(x, weight, bias):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight, bias)


def fast_products(tokens: int) -> AbstractContextManager[Any]:
    """Linear layers that are called inside, for so many tokens, are faster where this machine has the means."""
    usable = tokens >= ROWS and not torch.compiler.is_compiling() and _available()
    return _FastProducts() if usable else nullcontext()


class _FastProducts(TorchFunctionMode):

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.linear and not kwargs and not torch.compiler.is_compiling() and _takes(*args):
            return _Linear.apply(*args, *(3 - len(args)) * (None,))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        multiply = F.linear if torch.is_grad_enabled() else product  # a gradient of this gradient may be wanted
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (multiply(grad, weight.T) if for_x else None, multiply(rows.T, x.flatten(0, -2).T) if for_weight else None,
                rows.sum(dim=0) if for_bias else None)


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    given = (x, weight) if bias is None else (x, weight, bias)
    rows = x.numel() // max(1, x.shape[-1])
    return (rows >= ROWS and rows * weight.numel() >= ENOUGH and _available() and bool(torch.backends.mkldnn.enabled)
            and all(type(t) in (Tensor, torch.nn.Parameter) for t in given)
            and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in given)
            and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active())


@cache
def _available() -> bool:
    return (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and "AVX512" in torch.backends.cpu.get_cpu_capability())
