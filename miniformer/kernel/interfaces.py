"""The abstract parts of a model: Attention, PositionEncoding, FeedForward, Norm, Head.

Each constructor takes its kind's sizes as positional parameters and its options as keyword-only ones. Of a class, miniformer
reads only that signature and the class data named here. A component is an ordinary `nn.Module` and works without the framework:
called with a tensor alone, it gets the context of unpadded rows.

Shapes: B batch, T query length, S key length, D = d_model, H heads, E head width, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .component import Component
from .context import Context, Memory
from .errors import StateError
from .layout import Layout
from .masks import MaskRule
from .position_encoding import PositionEncoding
from .state import State

__all__ = ["Attention", "Component", "FeedForward", "Head", "Norm", "PositionEncoding"]


class Attention(Component):
    """Lets tokens look at each other: `[B, T, D] -> [B, T, D]`. Any way of mixing a sequence fits, attention or not.

    Class data:
        causal_only: cannot serve a model in which tokens see later ones.
        cross: can read keys and values from `context.memory`.
        applies: the hooks of a position encoding that it honours, of `rotate` and `bias`.
        masked: asks for `context.mask(rule)`; otherwise it reads the layout, and no mask is built for it.
    """

    causal_only: ClassVar[bool] = False
    cross: ClassVar[bool] = False
    applies: ClassVar[frozenset[str]] = frozenset({"rotate", "bias"})
    masked: ClassVar[bool] = True

    rule: MaskRule | None = None
    """Its own mask rule, which joins causality and documents; the mask is built once per forward."""
    rotary_width: int | None = None
    """Width of the heads that it gives to `context.rotate`; None: d_model // n_heads."""
    trains_bias: bool = True
    """A bias on the scores receives gradients."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, n_heads

    def __call__(self, x: Tensor, context: Context | None = None, state: State | None = None) -> Tensor:
        out: Tensor = super().__call__(x, Context.plain(x) if context is None else context, state)
        return out

    @abstractmethod
    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        """Mix `[B, T, D] -> [B, T, D]`; with `state`, the T tokens follow those that the state remembers."""

    def init_state(self, batch: int, capacity: int) -> State | None:
        """Make the empty state that decoding starts from, for `batch` rows of up to `capacity` columns.

        None means that there is nothing to remember: each token is computed from itself alone.

        Raises:
            StateError: unless overridden, so that a mixer without memory is never decoded step by step.
        """
        raise StateError(f"{type(self).__name__} defines no init_state, so it cannot be run step by step")

    def remember(self, memory: Memory) -> State | None:
        """Make the state that a cross-attention keeps of `memory` between steps, such as its keys and values.

        None (the default) means that `memory` is read anew at each step.
        """
        return None


class FeedForward(Component):
    """Works on each position by itself: `[B, T, D] -> [B, T, D]`. Auxiliary losses go to `context.record`."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.d_model, self.d_ff = d_model, d_ff

    def __call__(self, x: Tensor, context: Context | None = None) -> Tensor:
        out: Tensor = super().__call__(x, Context.plain(x) if context is None else context)
        return out

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Compute `[B, T, D] -> [B, T, D]`, each position from itself alone."""


class Norm(Component):
    """Brings activations to scale: `[..., D] -> [..., D]`."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D] -> [..., D]`, each vector by itself."""


class Head(Component):
    """Maps hidden states to outputs, at every position or only at selected ones."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__()
        self.d_model, self.n_outputs = d_model, n_outputs

    @abstractmethod
    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        """Map `[B, T, D] -> [B, T, O]`; with `select` `[B, T]` bool, `[N, O]` for the N selected positions, row by row."""

    def summary(self, x: Tensor, layout: Layout) -> Tensor:
        """Map `[B, T, D] -> [B, O]`: one output for each row, which padding does not change.

        By default it is the output at the row's first token.
        """
        rows = torch.arange(x.shape[0], device=x.device)
        return self(x[rows, layout.first()][:, None])[:, 0]

    def cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        """Sum the cross-entropy, in nats and in float32 at least.

        Override it where scores and loss are better computed together.

        Args:
            x: hidden states `[B, T, D]`.
            targets: classes `[B, T]`; positions with -1 are left out.
        """
        selected = targets >= 0
        scores = self(x, selected)
        wide = torch.promote_types(scores.dtype, torch.float32)
        return F.cross_entropy(scores.to(wide), targets[selected], reduction="sum")

    def tie(self, table: nn.Parameter) -> bool:
        """Use the token embedding's `table` `[V, D]` as its own weights, if this head can; returns whether it did."""
        return False
