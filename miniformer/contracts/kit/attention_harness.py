"""Runs an attention as a model would: with a direction, a position encoding, and the layout of all columns so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory, Role
from miniformer.kernel.interfaces import Attention, PositionEncoding
from miniformer.kernel.layout import Layout
from miniformer.kernel.state import State

from .case import Case
from .fixed_draws import fixed_draws
from .module_runner import set_mode


class RotatingEncoding(PositionEncoding):
    """Rotates each pair of neighbouring elements by an angle that grows with the position."""

    def rotate(self, x: Tensor, where: Tensor, role: Role) -> Tensor:
        width = x.shape[-1] // 2
        angles = where[:, None, :, None] * torch.linspace(1.0, 0.2, width, dtype=x.dtype)
        a, b, rest = x[..., :2 * width:2], x[..., 1:2 * width:2], x[..., 2 * width:]
        rotated = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
        return torch.cat([rotated.flatten(-2), rest], dim=-1)


class DistanceBias(PositionEncoding):
    """A bias that falls with distance, faster in later heads, and differs from place to place. It hides no token: it is finite.

    In a causal model no key is later than its query, so the bias there may be anything: here it is large.
    """

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        queries, keys = q_positions[:, None, :, None].double(), k_positions[:, None, None, :].double()
        heads = torch.arange(1, self.n_heads + 1, device=keys.device)[:, None, None]
        return -0.3 * heads * (queries - keys).abs() + torch.sin(1.3 * queries + 2.1 * keys + heads)

    def causal_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        later = q_positions[:, None, :, None] < k_positions[:, None, None, :]
        return torch.where(later, 50.0, self.bias(q_positions, k_positions))


ENCODINGS = {"rotate": RotatingEncoding, "bias": DistanceBias}
"""One position encoding for each hook that an attention may apply."""


class AttentionHarness:
    """An attention with a direction and a position encoding; `harness(x, layout)` runs it over whole rows.

    Attributes:
        module: the attention.
        causal: whether tokens look back only.
        encoding: the position encoding, or None.
        fixed: whether each pass over whole rows, or with a memory, draws the same random numbers.
    """

    def __init__(self, module: Attention, causal: bool, encoding: PositionEncoding | None, fixed: bool = False) -> None:
        self.module, self.causal, self.encoding, self.fixed = module, causal, encoding, fixed

    @classmethod
    def drawn(cls, case: Case, *, causal: bool | None = None, encoded: bool = True, dtype: torch.dtype = torch.float64,
              training: bool = True, same_shapes: bool = False, **component: Any) -> AttentionHarness:
        """An attention with drawn options, a direction that it supports, and an encoding whose hook it applies.

        Args:
            causal: the direction; without it, it is drawn.
            encoded: whether a position encoding may be drawn.
            dtype: dtype of the parameters.
            training: whether training mode may be drawn.
            same_shapes: all passes will have inputs of one shape, so that they can have the same draws; see `set_mode`.
            component: passed on to `Case.component`.
        """
        attention = case.under_test.cls
        if causal is None:
            causal = attention.causal_only or case.flip("causal")
        hooks = sorted(attention.applies & ENCODINGS.keys()) if encoded else []
        hook = case.choose("position", ["none", *hooks]) if hooks else "none"
        module = case.component(dtype, **component)
        fixed = training and set_mode(case, module, same_shapes)
        encoding = None if hook == "none" else ENCODINGS[hook](module.d_model, module.n_heads, 64)
        return cls(module, causal, encoding, fixed)

    def context(self, layout: Layout, keys: Layout | None = None) -> Context:
        """The context of a call. `layout` is that of the call's tokens, `keys` that of all tokens so far, these included."""
        context = Context(layout, self.causal, keys)
        if self.encoding is None:
            return context
        return Context(layout, self.causal, keys, signal=context.signals([self.encoding])[0])

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """The output for whole rows, without a state."""
        with fixed_draws() if self.fixed else nullcontext():
            return self.module(x, self.context(layout))

    def steps(self, x: Tensor, layout: Layout, ends: Sequence[int], state: State, start: int = 0) -> Tensor:
        """The output for the columns from `start` on, fed in pieces.

        Args:
            x: all columns, those before `start` included.
            layout: the layout of all columns.
            ends: the column after each piece.
            state: has seen the columns before `start`, and sees the pieces.
            start: the first column that is fed.
        """
        outputs, keys = [], layout.columns(start) if start else None
        for end in ends:
            piece = Layout(layout.positions[:, start:end], layout.documents[:, start:end], layout.padded, layout.packed)
            keys = piece if keys is None else keys.append_columns(piece)
            outputs.append(self.module(x[:, start:end], self.context(piece, keys), state))
            start = end
        return torch.cat(outputs, dim=1)

    def for_memory(self, x: Tensor, layout: Layout, memory: Memory, state: State | None = None) -> Tensor:
        """The output as a cross-attention to `memory`."""
        with fixed_draws() if self.fixed else nullcontext():
            return self.module(x, Context(layout, self.causal).for_memory(memory), state)

    def visible(self, layout: Layout) -> Tensor:
        """`[B, T, T]` bool: the tokens that each token may see.

        A token may see those of its document that are not later, where the model is causal, and that the attention's own rule
        allows.
        """
        queries, keys = layout.positions[:, :, None], layout.positions[:, None, :]
        allowed = layout.documents[:, :, None] == layout.documents[:, None, :]
        if self.causal:
            allowed = allowed & (queries >= keys)
        rule = self.module.rule
        return allowed if rule is None else allowed & rule.allows(layout, layout)


def each_document(x: Tensor, layout: Layout) -> list[tuple[int, Tensor, Tensor]]:
    """The row, the columns and the tokens `[1, n, D]` of each document; padding is left out."""
    texts = []
    for b, row in enumerate(layout.documents.tolist()):
        for number in sorted(set(row) - {0}):
            columns = torch.tensor([t for t, d in enumerate(row) if d == number])
            texts.append((b, columns, x[b, columns][None]))
    return texts
