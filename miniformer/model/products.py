"""Linear layers in float32 on a CPU, by the faster of the means that torch has.

torch multiplies float32 by MKL. Where a processor has AVX512 but is not one that MKL is tuned for, oneDNN, which torch asks
for half precision only, is about twice as fast (246 against 115 GFLOP/s on a core). One row, as in writing a text, is
multiplied by a batched product of parts of the matrix, which reads it up to three times as fast (59 against 17 GB/s on two
cores).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW, ENOUGH, LARGE = 2, 1 << 20, 1 << 16
"""Rows up to which they are multiplied by parts of the matrix; multiplications from which on oneDNN is the faster one; elements
of a matrix from which on parts of it are; all as measured."""
PARTS = 2
AVAILABLE = (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
             and "AVX512" in torch.backends.cpu.get_cpu_capability())


def speed_up(model: nn.Module) -> None:
    """Have the linear layers of a model, whichever component made them, multiply by `linear`; they stay what they are."""
    if AVAILABLE:
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, `[..., I], [O, I], [O] -> [..., O]`."""
    if torch.compiler.is_compiling():  # a graph would have MKL again
        return F.linear(x, weight, bias) if torch.is_grad_enabled() or x.device.type != "cpu" else _opaque(x, weight, bias)
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        if _rows(x) <= FEW:
            return F.linear(x, weight, bias)
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _multiplied(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same without gradients."""
    return _multiplied(x, weight, bias) if _fits(x, weight) else F.linear(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of what is known to fit."""
    if _rows(x) > FEW:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    x_PIR = x.reshape(-1, x.shape[-1]).T.expand(PARTS, -1, -1)
    parts_POI = weight.view(PARTS, -1, weight.shape[1])
    found_POR = torch.bmm(parts_POI, x_PIR) if bias is None else torch.baddbmm(bias.view(PARTS, -1, 1), parts_POI, x_PIR)
    return found_POR.permute(2, 0, 1).reshape(*x.shape[:-1], len(weight))


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own way would be slower, and nothing but values is asked for."""
    if not (AVAILABLE and x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"):
        return False
    if (rows := _rows(x)) > FEW:
        worth = rows * weight.numel() >= ENOUGH
    else:
        worth = rows > 0 and weight.numel() >= LARGE and weight.is_contiguous() and len(weight) % PARTS == 0
    return (worth and type(x) is Tensor and type(weight) in (Tensor, nn.Parameter) and bool(torch.backends.mkldnn.enabled)
            and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active())


_opaque = torch.library.custom_op("miniformer::product", product, mutates_args=())
_opaque.register_fake(lambda x, weight, bias=None: x.new_empty(*x.shape[:-1], len(weight)))


class _Linear(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        multiply = F.linear if torch.is_grad_enabled() else product  # a gradient of this gradient may be wanted
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (multiply(grad, weight.T) if for_x else None, multiply(rows.T, x.flatten(0, -2).T) if for_weight else None,
                rows.sum(dim=0) if for_bias else None)
