"""Multi-head attention, over everything or a sliding window, with keys and values that heads may share.

Shapes: B batch, T query length, S key length, D d_model, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from miniformer.decoding.state import BufferState, MemoryState, visible
from miniformer.decoding.window_state import WindowState, slots_needed
from miniformer.kernel.context import Context, Memory
from miniformer.kernel.interfaces import Attention, Norm
from miniformer.kernel.masks import MaskRule, Window
from miniformer.kernel.spec import Slot, build
from miniformer.kernel.state import State
from miniformer.ops.attention_kernels import KernelName, choose
from miniformer.ops.room import empty_room

from .init import RESIDUAL, linear


class MultiHeadAttention(Attention):
    """Scaled dot-product attention in parallel heads, which may share keys and values (Vaswani 2017, Ainslie 2023).

    Args:
        d_model: D.
        n_heads: H, a divisor of D unless `d_head` is given.
        d_head: E, the width of a head; None: D / H.
        n_kv_heads: K, a divisor of H; H (the default) is multi-head, 1 is multi-query.
        window: how many positions a token sees on each side, itself included; None: all.
        bias: biases in the projections.
        dropout: on the attention weights, in training.
        qk_norm: a norm over the width of each query and key, before rotation (Henry 2020, arXiv:2010.04245); None: none.
        scale: factor of the scores; None: 1 / sqrt(E). Queries start so that scores are alike whatever it is, as in T5, which
            has 1 (Raffel 2020, arXiv:1910.10683).
        softcap: bound of the scores, by a tanh (Gemma 2, arXiv:2408.00118); None: none.
        sinks: learn a logit for each head that takes weight from the keys (gpt-oss, arXiv:2508.10925).
        kernel: what computes it; `auto`: the fastest that can do what the other options ask for.
    """

    cross: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, *, d_head: Annotated[int | None, Field(ge=1)] = None,
                 n_kv_heads: Annotated[int | None, Field(ge=1)] = None,
                 window: Annotated[int | None, Field(ge=1)] = None, bias: bool = False,
                 dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0, qk_norm: Slot[Norm] | None = None,
                 scale: Annotated[float | None, Field(gt=0)] = None,
                 softcap: Annotated[float | None, Field(gt=0)] = None, sinks: bool = False,
                 kernel: KernelName = "auto") -> None:
        super().__init__(d_model, n_heads)
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}, or d_head be given")
        if n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {n_heads} must be a multiple of n_kv_heads {n_kv_heads}")
        self.kernel = choose(kernel, dropout=dropout, softcap=softcap, sinks=sinks)
        self.trains_bias = "bias gradient" in self.kernel.abilities
        self.d_head = d_model // n_heads if d_head is None else d_head
        self.rotary_width = d_head
        self.dropout, self.scale, self.softcap = dropout, scale, softcap
        self.rule: MaskRule | None = None if window is None else Window(window)
        self.q = linear(d_model, n_heads * self.d_head, bias, scale=1.0 if scale is None else self.d_head ** -0.5 / scale)
        self.kv = linear(d_model, 2 * self.n_kv_heads * self.d_head, bias)
        self.out = linear(n_heads * self.d_head, d_model, bias, scale=RESIDUAL)
        self.q_norm = None if qk_norm is None else build(Norm, qk_norm, self.d_head)
        self.k_norm = None if qk_norm is None else build(Norm, qk_norm, self.d_head)
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        B, T, _ = x.shape
        q_BHTE = self.q(x).view(B, T, self.n_heads, self.d_head).transpose(1, 2)
        q_BHTE = context.rotate(q_BHTE if self.q_norm is None else self.q_norm(q_BHTE), "q")
        new: tuple[Tensor, ...] = ()
        if context.memory is None:
            k_BKTE, v_BKTE = self._keys_values(x)
            new = context.rotate(k_BKTE, "k"), v_BKTE
        elif state is None:  # otherwise the state holds what `remember` made of the memory
            new = self._keys_values(context.memory.hidden)
        (k_BKSE, v_BKSE), mask, bias = visible(new, context, self.rule, state)
        out_BHTE = self.kernel.compute(q_BHTE, k_BKSE, v_BKSE, mask, bias, **self._kernel_options())
        return self.out(out_BHTE.transpose(1, 2).flatten(2))

    def _kernel_options(self) -> dict[str, Any]:
        """The options of this forward that differ from what a kernel does without them."""
        options: dict[str, Any] = {}
        if self.scale is not None:
            options["scale"] = self.scale
        if self.softcap is not None:
            options["softcap"] = self.softcap
        if self.dropout and self.training:
            options["dropout"] = self.dropout
        if self.sinks is not None:
            options["sinks"] = self.sinks
        return options

    def init_state(self, batch: int, capacity: int) -> KeyValueState | WindowState:
        window = self.rule.size if isinstance(self.rule, Window) else None
        columns = capacity if window is None else slots_needed(window, capacity)
        buffer = empty_room(self.kv, 2, batch, self.n_kv_heads, columns, self.d_head)
        return KeyValueState(buffer) if window is None else WindowState(buffer, window, capacity)

    def remember(self, memory: Memory) -> MemoryState:
        return MemoryState(*self._keys_values(memory.hidden))

    def _keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        k_BKSE, v_BKSE = self.kv(source_BSD).unflatten(-1, (2, self.n_kv_heads, self.d_head)).permute(2, 0, 3, 1, 4)
        return k_BKSE if self.k_norm is None else self.k_norm(k_BKSE), v_BKSE


class KeyValueState(BufferState):
    """Keys and values of the columns so far: a buffer `[2, B, K, C, E]`."""


class RotaryMultiHeadAttention(MultiHeadAttention):
    """`mha` whose position encoding, unless another is named, is `rope` (Su 2021)."""

    shorthand_for: ClassVar[Mapping[str, Any] | None] = {"attention": "mha", "position": "rope"}


class MultiQueryAttention(MultiHeadAttention):
    """`mha` whose heads all share one head of keys and values (Shazeer 2019, arXiv:1911.02150)."""

    shorthand_for: ClassVar[Mapping[str, Any] | None] = {"attention": {"name": "mha", "n_kv_heads": 1}}

    def __init__(self, d_model: int, n_heads: int, *, n_kv_heads: Annotated[int | None, Field(ge=1)] = 1,
                 **options: Any) -> None:
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, **options)


class GroupedQueryAttention(MultiHeadAttention):
    """`mha` with two heads of keys and values by default (Ainslie 2023, arXiv:2305.13245)."""

    shorthand_for: ClassVar[Mapping[str, Any] | None] = {"attention": {"name": "mha", "n_kv_heads": 2}}

    def __init__(self, d_model: int, n_heads: int, *, n_kv_heads: Annotated[int | None, Field(ge=1)] = 2,
                 **options: Any) -> None:
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, **options)


class SlidingWindowAttention(MultiHeadAttention):
    """`mha` that sees 128 positions on each side by default (Beltagy 2020, arXiv:2004.05150)."""

    shorthand_for: ClassVar[Mapping[str, Any] | None] = {"attention": {"name": "mha", "window": 128}}

    def __init__(self, d_model: int, n_heads: int, *, window: Annotated[int | None, Field(ge=1)] = 128,
                 **options: Any) -> None:
        super().__init__(d_model, n_heads, window=window, **options)
