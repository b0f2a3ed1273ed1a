"""The abstract parts of a model: Attention, PositionEncoding, FeedForward, Norm, Head.

Each constructor takes its kind's sizes as positional parameters and its options as keyword-only ones; nothing else is
read from a class but the class data named here. A component is an ordinary `nn.Module` and works without the framework:
called with a tensor alone, it is given the context of unpadded rows.

Shapes: B batch, T query length, S key length, D = d_model, H heads, E head width, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import Context, Memory, Role
from .errors import StateError
from .layout import Layout
from .masks import MaskRule
from .state import State


class Component(nn.Module, ABC):
    """Base of all parts of a model.

    Class data:
        shorthand_for: makes the class a shorthand: a spec that names it is stored as these slots instead, each a name or a
            spec with options: `{"attention": {"name": "mha", "n_kv_heads": 1}, "position": "rope"}`. Its options are
            those of what it stands for in its own slot, and those that the user gives win over those given here.
        breaks: promises of its kind that it does not keep, by the name of the contract's property, and why.
    """

    shorthand_for: ClassVar[Mapping[str, Any] | None] = None
    known_violations: ClassVar[Mapping[str, str]] = {}


class Attention(Component):
    """Lets tokens look at each other: `[B, T, D] -> [B, T, D]`. Any mixer of a sequence fits, attention or not.

    Class data:
        causal_only: cannot serve a model in which tokens see later ones.
        cross: can read keys and values from `context.memory`.
        applies: the hooks of a position encoding that it honours, of `rotate` and `bias`.
        masked: asks for `context.mask(rule)`; otherwise it reads the layout, and no mask is prepared for it.
    """

    causal_only: ClassVar[bool] = False
    cross: ClassVar[bool] = False
    applies: ClassVar[frozenset[str]] = frozenset({"rotate", "bias"})
    masked: ClassVar[bool] = True

    rule: MaskRule | None = None
    """Its own mask rule, beside causality and documents, which every attention keeps; prepared once per forward."""
    rotary_width: int | None = None
    """Width of the heads that it hands to `context.rotate`; None: d_model // n_heads."""
    trains_bias: bool = True
    """Gradients reach a bias on the scores."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, n_heads

    def __call__(self, x: Tensor, context: Context | None = None, state: State | None = None) -> Tensor:
        out: Tensor = super().__call__(x, Context.plain(x) if context is None else context, state)
        return out

    @abstractmethod
    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, D]`; with `state`, the T tokens follow those that it remembers."""

    def init_state(self, batch: int, capacity: int) -> State | None:
        """An empty state for `batch` rows of up to `capacity` columns; None: there is nothing to remember.

        Raises:
            StateError: unless overridden, so that what mixes tokens and forgets them is never decoded step by step.
        """
        raise StateError(f"{type(self).__name__} defines no init_state, so it cannot be run step by step")

    def remember(self, memory: Memory) -> State | None:
        """What a cross-attention keeps of `memory` between steps, such as keys and values; None: it looks anew each time."""
        return None


class PositionEncoding(Component):
    """Tells tokens where they are, through up to three hooks. Without any, as here, there is no position encoding.

    Class data:
        extrapolates: works at positions from `max_seq_len` on; otherwise the model refuses longer sequences.
        learns_bias: its bias has parameters, so that an attention must let gradients through.
        relative: what `rotate` and `bias` do to a query and a key hangs on the difference of their positions only.

    Heads are d_model // n_heads elements wide. Where an attention has heads of another width E rotated, it is served by an
    encoding built with `d_model` = E n_heads, of which only `rotate` is used.
    """

    extrapolates: ClassVar[bool] = False
    learns_bias: ClassVar[bool] = False
    relative: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.max_seq_len = d_model, n_heads, max_seq_len

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings `[B, T, D]` at `positions` `[B, T]`, before the first layer."""
        return x

    def precompute(self, positions: Tensor) -> Any:
        """What `rotate` needs of `positions` `[B, T]`, computed once per forward; the positions unless overridden."""
        return positions

    def rotate(self, x: Tensor, where: Any, role: Role) -> Tensor:
        """Queries or keys `[B, H, T, E]`, before their product; `where` is what `prepare` returned."""
        return x

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """`[B or 1, H, T, S]` added to the scores of queries at `[B, T]` and keys at `[B, S]`; once per forward."""
        return None

    def causal_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """What is added in a causal model, where no key is later than its query; `bias` unless overridden."""
        return self.bias(q_positions, k_positions)

    @classmethod
    def hooks(cls) -> frozenset[str]:
        """The hooks that this class fills."""
        return frozenset(hook.removeprefix("causal_") for hook in ("embed", "rotate", "bias", "causal_bias")
                         if getattr(cls, hook) is not getattr(PositionEncoding, hook))


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
        """`[B, T, D] -> [B, T, D]`."""


class Norm(Component):
    """Brings activations to scale: `[..., D] -> [..., D]`."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""


class Head(Component):
    """Maps hidden states to outputs, at every position or at those that are asked for."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__()
        self.d_model, self.n_outputs = d_model, n_outputs

    @abstractmethod
    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, O]`; with `select` `[B, T]` bool, `[N, O]` for the N positions chosen, row by row."""

    def summary(self, x: Tensor, layout: Layout) -> Tensor:
        """`[B, T, D] -> [B, O]`: one output for each row, blind to padding; the first token's unless overridden."""
        rows = torch.arange(x.shape[0], device=x.device)
        return self(x[rows, layout.first()][:, None])[:, 0]

    def cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy, in nats, of classes `targets` `[B, T]` at hidden states `[B, T, D]`; -1: none is meant.

        It is in float32 at least. Override it where scores and loss are better computed together.
        """
        chosen = targets >= 0
        scores = self(x, chosen)
        wide = torch.promote_types(scores.dtype, torch.float32)
        return F.cross_entropy(scores.to(wide), targets[chosen], reduction="sum")

    def tie(self, table: nn.Parameter) -> bool:
        """Share the token embedding's `table` `[V, D]`, where this head can and wants to; says whether it did."""
        return False
