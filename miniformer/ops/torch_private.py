"""Every name of torch that is not public and that this package relies on, with what happens where a release lacks it.

A question that torch can then not answer ("is a transform active?") is answered so that plain torch computes. What is only
faster is then not used. So a missing name costs time, and never a wrong number.

| private name | used for | without it |
| --- | --- | --- |
| `torch.ops.mkldnn._linear_pointwise` | float32 products by oneDNN | `F.linear` |
| `torch.ops.mkldnn._reorder_linear_weight`, `Tensor._version` | packed matrices | packed anew in each product |
| `torch._C._are_functorch_transforms_active` | whether `torch.func` is at work | assumed: plain torch |
| `forward_ad._current_level` | whether tangents are computed | assumed: plain torch |
| `torch._C._is_tracing` | whether `torch.jit.trace` is at work | assumed: plain torch |
| `Module._forward_hooks` and the like, `_has_any_global_hook` | whether anyone listens to a layer | assumed: plain torch |
| `torch._softmax_backward_data` | the derivative of a softmax | its formula |
| `Module._call_impl` | calling a compiled block without its graph | the graph is called |
| `torch._inductor.compile_fx` | compiling a decoding step | the step's graph, operator by operator |
| `torch._inductor.cpp_builder.get_cpp_compiler`, `torch.utils._triton.has_triton` | whether a compiler is there | assumed |
| `torch._dynamo.config` | room for a step's graphs | Dynamo's own limit |
| `torch.cpu._is_avx512_bf16_supported`, `_is_amx_tile_supported` | the default precision | float32 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from miniformer.kernel.errors import UserError

# --- oneDNN

_mkldnn = torch.ops.mkldnn
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(_mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
CAN_PACK = HAS_ONEDNN and hasattr(_mkldnn, "_reorder_linear_weight") and hasattr(Tensor, "_version")

onednn_linear: Any = _mkldnn._linear_pointwise.default if HAS_ONEDNN else None
"""x W^T + b, of `x, weight, bias, "none", [], ""`; the last three say that no activation follows."""


def pack_matrix(weight: Tensor, rows: int) -> Tensor:
    """A copy of a matrix in oneDNN's own layout, which `onednn_linear` takes in its place; `rows` of x are expected."""
    packed: Tensor = _mkldnn._reorder_linear_weight(weight.detach(), rows)
    return packed


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, except through its `.data`."""
    return tensor._version


# --- who else is at work

functorch_is_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
"""Whether a transform of `torch.func` (vmap, grad, jvp) sees the operators that run."""

is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: True)
"""Whether `torch.jit.trace` notes the operators that run."""

_any_global_hook: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)


def forward_ad_is_active() -> bool:
    """Whether forward-mode differentiation carries tangents along."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module calls hooks too, its own or those of all modules."""
    try:
        return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                    or module._backward_pre_hooks or _any_global_hook())
    except AttributeError:
        return True


# --- computing

def softmax_gradient(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient by the scores, from that by `weights` = softmax(scores, dim=-1)."""
    if hasattr(torch, "_softmax_backward_data"):
        return torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    by_weights = grad * weights
    return by_weights - weights * by_weights.sum(dim=-1, keepdim=True)


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


# --- compiling

def without_graph(module: nn.Module) -> Callable[..., Any]:
    """What calls a module, hooks included, but not the graph that `module.compile()` made of it."""
    return getattr(module, "_call_impl", module)


def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> Callable[..., Any]:
    """A graph that Dynamo captured, compiled by inductor with some options changed."""
    try:
        from torch._inductor.compile_fx import compile_fx
    except ImportError:
        return graph.forward
    compiled: Callable[..., Any] = compile_fx(graph, inputs, config_patches=dict(options))  # type: ignore[assignment]
    return compiled


def graph_limit(graphs: int) -> AbstractContextManager[Any]:
    """Let Dynamo make so many graphs of one function inside, before it gives up compiling it."""
    try:
        return torch._dynamo.config.patch(recompile_limit=graphs)
    except AttributeError:
        return nullcontext()


def check_compiler(on_gpu: bool) -> None:
    """Refuse to compile where nothing can be compiled, which torch would notice at the first step.

    Raises:
        UserError: there is no compiler that works.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch.utils._triton import has_triton
    except ImportError:
        return
    if on_gpu and not has_triton():
        raise UserError("compile: triton is not installed, or does not know this GPU; install it, or leave compile out")
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(f"compile: {str(error).splitlines()[0]}; install g++ or clang++, name one in CXX, or leave compile "
                        "out") from error
