"""An attention with what a model would give it: direction, position encoding, and the layout of all columns so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory, Role
from miniformer.kernel.interfaces import Attention, PositionEncoding
from miniformer.kernel.layout import Layout
from miniformer.kernel.state import State

from .case import Case
from .module_runner import set_mode


class Turning(PositionEncoding):
    """Turns each pair of neighbouring elements by an angle that grows with the position."""

    def rotate(self, x: Tensor, where: Tensor, role: Role) -> Tensor:
        width = x.shape[-1] // 2
        angles = where[:, None, :, None] * torch.linspace(1.0, 0.2, width, dtype=x.dtype)
        a, b, rest = x[..., :2 * width:2], x[..., 1:2 * width:2], x[..., 2 * width:]
        turned = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
        return torch.cat([turned.flatten(-2), rest], dim=-1)


class Leaning(PositionEncoding):
    """A bias that falls with distance, more in later heads, and hides nothing."""

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs().double()
        return -0.3 * distance * torch.arange(1, self.n_heads + 1)[:, None, None]


ENCODINGS = {"rotate": Turning, "bias": Leaning}


class AttentionHarness:
    """An attention in a direction and under a position encoding: `attend(x, layout)` is the whole pass.

    Attributes:
        module: the attention.
        causal: whether tokens only look back.
        encoding: what it is told of positions, or None.
    """

    def __init__(self, module: Attention, causal: bool, encoding: PositionEncoding | None) -> None:
        self.module, self.causal, self.encoding = module, causal, encoding

    @classmethod
    def drawn(cls, case: Case, *, causal: bool | None = None, encoded: bool = True, dtype: torch.dtype = torch.float64,
              training: bool = True, **component: Any) -> AttentionHarness:
        """An attention with drawn options, in a direction that it serves, under an encoding whose hooks it applies.

        Args:
            causal: the direction, instead of a drawn one.
            encoded: it may be under an encoding.
            dtype: of its parameters.
            training: it may be in training mode too.
            component: as for `Case.component`.
        """
        attention = case.subject.cls
        if causal is None:
            causal = attention.causal_only or case.flip("causal")
        hooks = sorted(attention.applies & ENCODINGS.keys()) if encoded else []
        hook = case.choose("position", ["none", *hooks]) if hooks else "none"
        module = case.component(dtype, **component)
        if training:
            set_mode(case, module)
        encoding = None if hook == "none" else ENCODINGS[hook](module.d_model, module.n_heads, 64)
        return cls(module, causal, encoding)

    def context(self, layout: Layout, keys: Layout | None = None) -> Context:
        """The context of a call whose tokens sit at `layout` and follow others: `keys` are all of them."""
        context = Context(layout, self.causal, keys)
        if self.encoding is None:
            return context
        return Context(layout, self.causal, keys, signal=context.signals([self.encoding])[0])

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """All tokens at once."""
        return self.module(x, self.context(layout))

    def steps(self, x: Tensor, layout: Layout, ends: Sequence[int], state: State, start: int = 0) -> Tensor:
        """The columns from `start` on in pieces that end at `ends`, with what `state` remembers of those before."""
        out, keys = [], layout.columns(start) if start else None
        for end in ends:
            piece = Layout(layout.positions[:, start:end], layout.documents[:, start:end], layout.padded, layout.packed)
            keys = piece if keys is None else keys.append_columns(piece)
            out.append(self.module(x[:, start:end], self.context(piece, keys), state))
            start = end
        return torch.cat(out, dim=1)

    def for_memory(self, x: Tensor, layout: Layout, memory: Memory, state: State | None = None) -> Tensor:
        """A cross-attention to `memory`."""
        return self.module(x, Context(layout, self.causal).for_memory(memory), state)

    def may_see(self, layout: Layout) -> Tensor:
        """`[B, T, T]` bool by the rules: same document, not later where causal, and the attention's own rule."""
        queries, keys = layout.positions[:, :, None], layout.positions[:, None, :]
        allowed = layout.documents[:, :, None] == layout.documents[:, None, :]
        if self.causal:
            allowed = allowed & (queries >= keys)
        rule = self.module.rule
        return allowed if rule is None else allowed & rule.allows(layout, layout)


def alone(x: Tensor, layout: Layout) -> list[tuple[int, Tensor, Tensor]]:
    """Each document by itself: its row, its columns, and its tokens `[1, n, D]`."""
    found = []
    for b, row in enumerate(layout.documents.tolist()):
        for number in sorted(set(row) - {0}):
            columns = torch.tensor([t for t, d in enumerate(row) if d == number])
            found.append((b, columns, x[b, columns][None]))
    return found
