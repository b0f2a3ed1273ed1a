"""Linear layers in float32 on a CPU, each multiplied in the fastest of three ways.

`F.linear` multiplies float32 by MKL, which is not tuned for every maker's processors and slow for few rows. Two other ways
compute the same:

- oneDNN, which torch itself takes for half precision only. With AVX512 it is about twice as fast for many rows (246 against 115
  GFLOP/s on a core); with AVX2 it is up to half faster for some 9 to 256 rows, and no faster for more. It lays the matrix out
  anew for each product, a third of the time for few rows; `pack` keeps matrices as it lays them out.
- A batched product of the two halves of the matrix, for one row or a few, as in writing a text. It reads the matrix up to three
  times as fast (59 against 17 GB/s on two cores with AVX512, 20 against 10 with AVX2).

To follow a call: a layer that `speed_up` has seen calls `linear`, which asks the switch, then `_fits`, then whether gradients
are wanted, and ends in `F.linear`, in `_multiply`, or in `_Linear`, whose forward and backward are `_multiply` again.

Shapes: I inputs, O outputs, P parts of a matrix, R rows.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .switch import is_plain, is_plain_in_graph, log_path
from .torch_private import (
    CAN_PACK,
    HAS_ONEDNN,
    forward_ad_is_active,
    functorch_is_active,
    has_hooks,
    is_tracing,
    onednn_linear,
    pack_matrix,
    version,
)

CAPABILITY = torch.backends.cpu.get_cpu_capability()
WIDE = "AVX512" in CAPABILITY
"""Whether oneDNN is faster for many rows too, as training has them."""
AVAILABLE = HAS_ONEDNN and (WIDE or "AVX2" in CAPABILITY)
"""Whether this processor and this torch have a faster way at all."""

# thresholds, all measured
FEW, MOST = (2, math.inf) if WIDE else (8, 256)
"""Up to FEW rows are multiplied by parts of the matrix; more than MOST are left to MKL."""
FEW_PACKED = 2
"""FEW for a packed matrix, which oneDNN reads faster."""
ENOUGH = 1 << 20
"""Multiplications from which oneDNN is faster than MKL."""
LARGE = 1 << 16
"""Elements of a matrix from which parts of it, or a packed copy, are faster."""
PARTS = 2
PACKED_FOR_ROWS = 64
"""The rows that oneDNN is asked to pack a matrix for; it packs alike for any number above a few."""

# state
_packed: dict[int, tuple[tuple[int, int], Tensor] | None] = {}
"""By the `id` of each matrix to pack, while it lives: (version, address) of its values, and the packed copy; None: not yet."""
_optimizer_hooks: list[Any] = []
"""The hook on optimizers' steps, once any matrix is to be packed."""


# --- for models

def speed_up(model: nn.Module) -> None:
    """Have all linear layers of a model, whichever component made them, multiply by `linear`.

    They stay `nn.Linear`, so what adapts, hooks or replaces a layer finds what it expects. A subclass is left alone.
    """
    if AVAILABLE:
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def pack(model: nn.Module) -> None:
    """Keep a second copy of a model's large matrices in oneDNN's layout, for products without gradients.

    A copy is made when its matrix is first used. It is rebuilt when the matrix has changed, and after any optimizer's step, as
    a fused step changes no version. A change through `.data` that keeps the address goes unnoticed. Copies die with their
    matrices.
    """
    if not (AVAILABLE and CAN_PACK):
        return
    if not _optimizer_hooks:
        _optimizer_hooks.append(register_optimizer_step_post_hook(_forget_packed_copies))
    for layer in model.modules():
        if type(layer) is nn.Linear and _can_be_packed(layer.weight):
            _packed[id(layer.weight)] = None
            finalize(layer.weight, _packed.pop, id(layer.weight), None)


def is_just_a_matrix(layer: nn.Module) -> bool:
    """Whether calling a layer only multiplies by its weight, so that a caller may use the weight in place of the call.

    A bias, hooks, a subclass, a weight of another class or another `forward` each forbid it. So does the switch: plain torch
    calls layers.
    """
    own_forward = vars(layer).get("forward")
    is_torchs_or_ours = own_forward is None or getattr(own_forward, "func", None) is _forward
    if torch.compiler.is_compiling():
        plain = is_plain_in_graph()
    else:
        plain = is_plain()
    if plain or type(layer) is not nn.Linear or type(layer.weight) not in (Tensor, nn.Parameter):
        return False
    return layer.weight.is_floating_point() and layer.bias is None and is_torchs_or_ours and not has_hooks(layer)


# --- products

def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, `[..., I], [O, I], [O] -> [..., O]`, in the fastest way that gives what is asked for."""
    if torch.compiler.is_compiling():
        return _linear_in_graph(x, weight, bias)
    if is_plain():
        log_path("linear layers", "F.linear (plain torch)")
        return F.linear(x, weight, bias)
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if not _wants_gradients(x, weight, bias):
        log_path("linear layers without gradients", "oneDNN, or parts of the matrix for few rows")
        return _multiply(x, _packed_or_same(weight, _rows(x)), bias)
    if not WIDE or _rows(x) <= FEW:  # for so few, an autograd function in Python costs more than is gained
        return F.linear(x, weight, bias)
    log_path("linear layers with gradients", "oneDNN, forwards and backwards")
    y: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without gradients, for what has decided on a fast path already; it does not ask the switch."""
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    return _multiply(x, _packed_or_same(weight, _rows(x)), bias)


class _Linear(torch.autograd.Function):
    """`_multiply` with its derivative, both by oneDNN: y = x W^T + b, so dx = dy W, dW = dy^T x and db = the sum of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        multiply = F.linear if torch.is_grad_enabled() else product  # F.linear has a gradient of this gradient
        grad_y_RO = grad_y.flatten(0, -2)
        grad_x = multiply(grad_y, weight.T) if wants_x else None
        grad_weight = multiply(grad_y_RO.T, x.flatten(0, -2).T) if wants_weight else None
        grad_bias = grad_y_RO.sum(dim=0) if wants_bias else None
        return grad_x, grad_weight, grad_bias


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, where `_fits` has said yes: by oneDNN, or for few rows by parts of the matrix."""
    if weight.is_mkldnn or _rows(x) > FEW:
        y: Tensor = onednn_linear(x, weight, bias, "none", [], "")
        return y
    # the rows as columns, the same for each part, so that each part of the matrix is read once
    x_PIR = x.reshape(-1, x.shape[-1]).T.expand(PARTS, -1, -1)
    weight_POI = weight.view(PARTS, -1, weight.shape[1])
    if bias is None:
        y_POR = torch.bmm(weight_POI, x_PIR)
    else:
        y_POR = torch.baddbmm(bias.view(PARTS, -1, 1), weight_POI, x_PIR)
    return y_POR.permute(2, 0, 1).reshape(*x.shape[:-1], len(weight))


# --- what decides

def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `_multiply` is faster than `F.linear` here, and gives all that is asked for."""
    if not (AVAILABLE and x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"):
        return False  # torch takes oneDNN for half precision itself
    if is_tracing():
        return False  # who loads a trace may not have our operators
    rows = _rows(x)
    if rows > FEW:
        if rows > MOST or rows * weight.numel() < ENOUGH:
            return False
    elif rows == 0 or weight.numel() < LARGE or not weight.is_contiguous() or len(weight) % PARTS:
        return False  # too small, or not to be cut into parts
    if type(x) is not Tensor or type(weight) not in (Tensor, nn.Parameter):
        return False  # a subclass may define what multiplying means
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False  # half precision is asked for, or oneDNN is switched off
    return not functorch_is_active() and not forward_ad_is_active()  # neither knows the derivative of our operators


def _wants_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


# --- packed matrices

def _can_be_packed(weight: Tensor) -> bool:
    """Whether a matrix is large enough, not packed yet, and has a version (a tensor of inference mode has none)."""
    return weight.numel() >= LARGE and id(weight) not in _packed and not weight.is_inference()


def _packed_or_same(weight: Tensor, rows: int) -> Tensor:
    """The packed copy of a matrix, where there is to be one and it is faster; else the matrix."""
    if rows <= FEW_PACKED or id(weight) not in _packed:
        return weight
    values = version(weight), weight.data_ptr()
    entry = _packed[id(weight)]
    if entry is None or entry[0] != values:
        entry = _packed[id(weight)] = values, pack_matrix(weight, PACKED_FOR_ROWS)
    return entry[1]


def _forget_packed_copies(*_: Any) -> None:
    for matrix in _packed:
        _packed[matrix] = None


# --- in compiled graphs

def _linear_in_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` where Dynamo traces it: a graph by itself multiplies float32 by MKL again."""
    is_float32_on_cpu = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    # with gradients, inductor must see the product; and who loads an exported graph may not have our operator
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or not (AVAILABLE and is_float32_on_cpu):
        return F.linear(x, weight, bias)
    if is_plain_in_graph():
        return F.linear(x, weight, bias)
    if _rows(x) > 1:
        y: Tensor = (_product_operator if weight.numel() >= LARGE else F.linear)(x, weight, bias)
        return y
    # one row: inductor's own loop reads the matrix as fast as the memory gives it, in one kernel with what stands beside it
    x_I = x.reshape(-1)
    x_I = x_I.as_strided(x_I.shape, x_I.stride())  # makes it a buffer: else it is computed anew for each row of the matrix
    y_O = (weight * x_I).sum(dim=-1)
    return (y_O if bias is None else y_O + bias).view(*x.shape[:-1], -1)


def _product_on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator `miniformer::product` that graphs call."""
    if id(weight) in _packed and (rows := _rows(x)) > FEW_PACKED:  # the rest of `_fits` held when the graph was made
        return _multiply(x, _packed_or_same(weight, rows), bias)
    return product(x, weight, bias).contiguous()


def _product_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


# `torch.library.custom_op` would be shorter, and takes three times as long to call
_library: Any = torch.library.Library("miniformer", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("product", _product_on_cpu, "CPU")
torch.library.register_fake("miniformer::product", _product_shape, lib=_library)
_product_operator = torch.ops.miniformer.product.default
