"""Promises of every module about its channels: elements of vectors, heads, and the rows and columns of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, require, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS, ModuleRunner
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.context import Memory
from miniformer.kernel.interfaces import Head, PositionEncoding
from miniformer.kernel.layout import Layout

ATTEMPTS = 25
"""For how many inputs a channel must have no gradient. One of a rectifier, or of an expert that few choose, may have none for
some of them."""
CLEAR = 1e-9
"""A gradient that is no rounding of zero; a loss here has the size 1. Only beside such ones do zeros say something."""
CONSTANT_OUTPUTS = (Head, PositionEncoding)
"""Kinds of which an output may be constant on purpose: the score of a class that others are compared with, or a place."""

Outputs = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""The outputs of a component by name, from an input `[B, T, D]` and a memory `[B, T, D]`, which most do not read."""


@contract(*MODULE_KINDS, examples=0.4)
def uses_every_channel(case: Case) -> None:
    """No element of a vector and no head is left out, at odd widths and odd numbers of heads too. Measured: where one row or
    column of a parameter gets a gradient, all get one, and likewise the elements of the input; and no element of the output of
    an attention, a feed-forward or a norm is constant. Counted are dimensions that grow with the sizes of the component; the
    places of a table, or experts, may be unused.

    In training: a part of the weights keeps its initial values, and the model is smaller than its parameter count says.
    """
    module, outputs = _drawn(case)
    larger = _twice_as_large(case)
    grown = {name: [dim for dim, n in enumerate(parameter.shape) if larger[name].shape[dim] != n]
             for name, parameter in module.named_parameters() if name in larger and larger[name].ndim == parameter.ndim}
    grown |= {"its input": [2], "its memory": [2], "its output": [1]}
    counts = dict[str, Tensor]()  # by tensor: the largest gradient of each of its elements so far
    for attempt in range(ATTEMPTS):
        for name, size in _gradients(module, outputs, case.last_sizes["d_model"], attempt).items():
            counts[name] = torch.maximum(counts[name], size) if name in counts else size
        unused = {(name, dim): numbers for name, size in counts.items() for dim in grown.get(name, ())
                  if (numbers := _unused(size, dim))}
        if not unused:
            return
    (name, dim), numbers = next(iter(unused.items()))
    total = counts[name].shape[dim]
    what = "are constant" if name == "its output" else "get no gradient"
    require(False, f"{', '.join(map(str, numbers))} of {total} along dimension {dim} of {name} {what}, and others do, with "
                   f"{', '.join(f'{size} {n}' for size, n in case.last_sizes.items())}")


def _drawn(case: Case) -> tuple[nn.Module, Outputs]:
    """A component, and how its outputs are computed from an input, and in an attention from a memory too, if that is drawn."""
    if case.under_test.kind != "attention":
        module = case.component(**_odd_sizes(case)).train(case.flip("training"))
        runner = ModuleRunner.of(case, module, torch.zeros(4, 16, module.d_model, dtype=torch.float64))
        return module, lambda x, memory: runner.outputs(x)
    harness = AttentionHarness.drawn(case, training=False, **_odd_sizes(case))
    module, layout = harness.module, Layout.full(4, 16)
    module.train(case.flip("training"))
    if module.cross and module.rule is None and case.flip("reads a memory"):
        return module, lambda x, memory: {"forward": harness.for_memory(x, layout, Memory(memory, layout))}
    return module, lambda x, memory: {"forward": harness(x, layout)}


def _odd_sizes(case: Case) -> dict[str, Any]:
    """Sizes for a component, most of them odd. What refuses an odd width or number of heads is looked at in even ones."""
    kind = case.under_test.kind
    if kind in ("attention", "position"):
        heads = case.choose("heads", [3, 5, 7, 6, 2])
        return {"n_heads": heads, "d_model": heads * case.choose("width of a head", [4, 5, 3, 8])}
    sizes = {"d_model": case.choose("width", [9, 7, 15, 12])}
    return sizes | ({"d_ff": case.choose("d_ff", [7, 13, 12])} if kind == "ffn" else {})


def _twice_as_large(case: Case) -> dict[str, nn.Parameter]:
    """The parameters by name of a component with the drawn options and with all sizes doubled, but for the number of places."""
    sizes = {name: n if name == "max_seq_len" else 2 * n for name, n in case.last_sizes.items()}
    if "n_heads" in sizes:
        sizes["d_model"] *= 2  # so that each head is wider too
    with seeded(0):
        return dict(case.build_or_reject(sizes, case.chosen_options).named_parameters())


def _gradients(module: nn.Module, outputs: Outputs, d_model: int, attempt: int) -> dict[str, Tensor]:
    """How large gradients of a loss of size 1 are, for the inputs and each parameter; of outputs, how far each one reaches."""
    with seeded(attempt):
        x, memory = (torch.randn(4, 16, d_model, dtype=torch.float64, requires_grad=True) for _ in range(2))
        found = outputs(x, memory)
        flat = torch.cat([out.flatten().to(torch.float64) for out in found.values()])
        loss = (flat * torch.randn_like(flat)).sum() / flat.numel() ** 0.5
    tensors = {"its input": x, "its memory": memory, **dict(module.named_parameters())}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True) if loss.requires_grad else ()
    sizes = {name: gradient.abs() for name, gradient in zip(tensors, gradients, strict=False) if gradient is not None}
    if not isinstance(module, CONSTANT_OUTPUTS):
        out = found["forward"].detach().flatten(0, -2)
        sizes["its output"] = (out.amax(dim=0) - out.amin(dim=0))[None]
    return sizes


def _unused(size: Tensor, dim: int) -> list[int]:
    """The indices along a dimension at which all is exactly zero, if at others something is clearly not."""
    along = size.transpose(0, dim).flatten(1).amax(dim=1) if size.ndim > 1 else size
    clear = bool((along > CLEAR).any())
    return (along == 0).nonzero().flatten().tolist() if clear else []
