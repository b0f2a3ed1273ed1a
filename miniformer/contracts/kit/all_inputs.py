"""Every tensor that a module of a kind is given, as a real model gives it: to see which of them it writes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory, Signal
from miniformer.kernel.interfaces import PositionEncoding
from miniformer.kernel.layout import Layout

from .case import Case

MEMORY_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "part of a larger one": lambda x: torch.cat([x, x], dim=-1)[..., :x.shape[-1]],
    "one row, expanded": lambda x: x[:1].expand_as(x),
}
"""How the elements of an input may lie in memory."""

Calls = list[Callable[[], Any]]


def inputs_and_calls(case: Case, kind: str, module: Any, x: Tensor, causal: bool) -> tuple[dict[str, Tensor], Calls]:
    """The tensors that a module is given by name, and the calls that give them to it, one for each of its methods."""
    layout = Layout.from_documents(torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]]))
    given = {"its input": x, "positions of the layout": layout.positions, "documents of the layout": layout.documents}
    calls: Calls = BY_KIND[kind](case, module, x, layout, given, causal)
    return given, calls


def _attention(case: Case, module: Any, x: Tensor, layout: Layout, given: dict[str, Tensor], causal: bool) -> Calls:
    B, T, D = x.shape
    signal = None
    if "bias" in module.applies:
        given["the bias"] = bias = case.tensor(B, module.n_heads, T, T, dtype=x.dtype)
        signal = Signal(PositionEncoding(D, module.n_heads, 64), None, bias)
    context = Context(layout, causal, signal=signal)
    mask = context.mask(module.rule)  # every layer with this rule is given it
    if mask.allowed is not None:
        given["the mask"] = mask.allowed
    calls: Calls = [lambda: module(x, context)]
    if module.cross and module.rule is None:
        given["the memory"] = hidden = case.tensor(B, T, D, dtype=x.dtype)
        memory = Memory(hidden, layout)
        calls += [lambda: module(x, Context(layout).for_memory(memory)), lambda: module.remember(memory)]
    return calls


def _position(case: Case, module: Any, x: Tensor, layout: Layout, given: dict[str, Tensor], causal: bool) -> Calls:
    positions = layout.positions
    given["heads"] = heads = case.tensor(*x.shape[:2], module.n_heads, x.shape[2] // module.n_heads, dtype=x.dtype)
    return [lambda: module.embed(x, positions), lambda: module.bias(positions, positions),
            lambda: module.causal_bias(positions, positions),
            lambda: [module.rotate(heads.transpose(1, 2), module.precompute(positions), role) for role in ("q", "k")]]


def _head(case: Case, module: Any, x: Tensor, layout: Layout, given: dict[str, Tensor], causal: bool) -> Calls:
    given["the selection"] = select = layout.real.clone()
    given["the targets"] = targets = torch.where(select, layout.positions % module.n_outputs, -1)
    return [lambda: module(x), lambda: module(x, select), lambda: module.summary(x, layout),
            lambda: module.cross_entropy(x, targets)]


BY_KIND: dict[str, Callable[..., Calls]] = {
    "attention": _attention,
    "position": _position,
    "ffn": lambda case, module, x, layout, given, causal: [lambda: module(x, Context(layout))],
    "norm": lambda case, module, x, layout, given, causal: [lambda: module(x)],
    "head": _head,
}
