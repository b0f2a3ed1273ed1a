"""Linear layers in float32 on a CPU, by the faster of the means that torch has.

torch multiplies float32 by MKL, which is not tuned for every maker's processors, and which few rows suit badly. oneDNN, which
torch asks for half precision only, is about twice as fast with AVX512 (246 against 115 GFLOP/s on a core); with AVX2 it is up
to half faster for few rows, and no faster for many. A row or some, as in writing texts, are multiplied by a batched product of
parts of the matrix, which reads it up to three times as fast (59 against 17 GB/s on two cores with AVX512, 20 against 10 with
AVX2). oneDNN packs the matrix anew each time, which for few rows takes a third of the time; `pack` does so once.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

CAPABILITY = torch.backends.cpu.get_cpu_capability()
AVAILABLE = (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
             and any(one in CAPABILITY for one in ("AVX512", "AVX2")))
WIDE = "AVX512" in CAPABILITY
"""Whether oneDNN is faster for many rows too, as training has."""
FEW, MOST = (2, math.inf) if WIDE else (8, 256)
"""Up to FEW rows are multiplied by parts of the matrix; more than MOST are left to MKL. All thresholds here are measured."""
FEW_PACKED = 2
"""The same bound as FEW, for a packed matrix."""
ENOUGH, LARGE = 1 << 20, 1 << 16
"""Multiplications from which on oneDNN is faster; elements of a matrix from which on parts of it are."""
PARTS = 2
ROWS = 64
"""For which oneDNN is asked to pack a matrix; it packs it likewise for any number above a few."""


def speed_up(model: nn.Module) -> None:
    """Have the linear layers of a model, whichever component made them, multiply by `linear`; they stay what they are."""
    if AVAILABLE:
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def pack(model: nn.Module) -> None:
    """Keep the large matrices of a model's linear layers a second time, as oneDNN reads them, for when no gradients are wanted.

    They are made when they are first used, made again when a matrix has changed (but through its `.data`, which nothing tells
    of) and after any optimizer's step (of a fused one no version tells), and go with their matrices.
    """
    if AVAILABLE:
        if not _hooks:
            _hooks.append(register_optimizer_step_post_hook(_changed))
        for layer in model.modules():
            if (type(layer) is nn.Linear and id(layer.weight) not in _packed and layer.weight.numel() >= LARGE
                    and not layer.weight.is_inference()):
                _packed[id(layer.weight)] = None
                finalize(layer.weight, _packed.pop, id(layer.weight), None)


def is_just_a_matrix(layer: nn.Module) -> bool:
    """Whether calling it is multiplying with its weight: there is no bias, nobody has put another in its place, or listens."""
    own = vars(layer).get("forward")
    return (type(layer) is nn.Linear and layer.bias is None and not listened_to(layer)
            and (own is None or getattr(own, "func", None) is _forward))


def listened_to(module: nn.Module) -> bool:
    """Whether calling it calls hooks too."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
                or _has_any_global_hook())  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, `[..., I], [O, I], [O] -> [..., O]`."""
    if torch.compiler.is_compiling():
        return _in_graph(x, weight, bias)
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        if not WIDE or _rows(x) <= FEW:
            return F.linear(x, weight, bias)
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _multiplied(x, _readable(weight, _rows(x)), bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same without gradients."""
    return _multiplied(x, _readable(weight, _rows(x)), bias) if _fits(x, weight) else F.linear(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of what is known to fit."""
    if weight.is_mkldnn or _rows(x) > FEW:
        found: Tensor = _onednn(x, weight, bias, "none", [], "")
        return found
    x_PIR = x.reshape(-1, x.shape[-1]).T.expand(PARTS, -1, -1)
    parts_POI = weight.view(PARTS, -1, weight.shape[1])
    found_POR = torch.bmm(parts_POI, x_PIR) if bias is None else torch.baddbmm(bias.view(PARTS, -1, 1), parts_POI, x_PIR)
    return found_POR.permute(2, 0, 1).reshape(*x.shape[:-1], len(weight))


def _readable(weight: Tensor, rows: int) -> Tensor:
    """A matrix as it is packed, if it is and that is faster."""
    if rows <= FEW_PACKED or id(weight) not in _packed:
        return weight
    kept, now = _packed[id(weight)], (weight._version, weight.data_ptr())
    if kept is None or kept[0] != now:
        kept = _packed[id(weight)] = now, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return kept[1]


def _in_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same in a graph, which by itself would have MKL again."""
    if (torch.is_grad_enabled() or torch.compiler.is_exporting()  # whoever loads an exported graph may not have the operator
            or not (AVAILABLE and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu")):
        return F.linear(x, weight, bias)
    if _rows(x) > 1:
        found: Tensor = (_opaque if weight.numel() >= LARGE else F.linear)(x, weight, bias)
        return found
    x_I = x.reshape(-1)
    x_I = x_I.as_strided(x_I.shape, x_I.stride())  # is computed once, and not by each row of the matrix
    y_O = (weight * x_I).sum(dim=-1)
    return (y_O if bias is None else y_O + bias).view(*x.shape[:-1], -1)


def _changed(*_: Any) -> None:
    for matrix in _packed:
        _packed[matrix] = None


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own way would be slower, and nothing but values is asked for."""
    if (not (AVAILABLE and x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu")
            or torch._C._is_tracing()):
        return False
    if (rows := _rows(x)) > FEW:
        worth = rows <= MOST and rows * weight.numel() >= ENOUGH
    else:
        worth = rows > 0 and weight.numel() >= LARGE and weight.is_contiguous() and len(weight) % PARTS == 0
    return (worth and type(x) is Tensor and type(weight) in (Tensor, nn.Parameter) and bool(torch.backends.mkldnn.enabled)
            and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0)


def _as_operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if id(weight) in _packed and (rows := _rows(x)) > FEW_PACKED:  # what else `_fits` asks was so when the graph was made
        return _multiplied(x, _readable(weight, rows), bias)
    return product(x, weight, bias).contiguous()


_packed: dict[int, tuple[tuple[int, int], Tensor] | None] = {}
"""By the identity of a matrix, while it lives: how it is packed, with the version and the place of it that was."""
_hooks: list[Any] = []
"""What tells of optimizers' steps, once something is packed."""
_onednn: Any = torch.ops.mkldnn._linear_pointwise.default if AVAILABLE else None
# a `custom_op` would take three times as long to call
_library: Any = torch.library.Library("miniformer", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("product", _as_operator, "CPU")
torch.library.register_fake("miniformer::product", lambda x, weight, _: x.new_empty(*x.shape[:-1], len(weight)), lib=_library)
_opaque = torch.ops.miniformer.product.default


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
