"""Attention: multi-head, grouped-query and multi-query, over everything or a sliding window.

Shapes: B batch, T query length, S key length, D d_model, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.errors import StateError
from miniformer.kernel.interfaces import Attention
from miniformer.kernel.masks import Mask, MaskRule, Window
from miniformer.kernel.state import State

from .init import RESIDUAL, linear
from .state import MemoryState


class MultiHeadAttention(Attention):
    """Scaled dot-product attention in parallel heads, which may share keys and values (Vaswani 2017, Ainslie 2023).

    Args:
        d_model: D.
        n_heads: H, a divisor of D.
        n_kv_heads: K, a divisor of H; H (the default) is multi-head, 1 is multi-query.
        window: how many positions a token sees on each side, itself included; None: all.
        bias: biases in the projections.
        dropout: on the attention weights, in training.
    """

    cross: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, *, n_kv_heads: Annotated[int | None, Field(ge=1)] = None,
                 window: Annotated[int | None, Field(ge=1)] = None, bias: bool = False,
                 dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__(d_model, n_heads)
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        if n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {n_heads} must be a multiple of n_kv_heads {n_kv_heads}")
        self.d_head, self.dropout = d_model // n_heads, dropout
        self.rule: MaskRule | None = None if window is None else Window(window)
        self.q = linear(d_model, d_model, bias)
        self.kv = linear(d_model, 2 * self.n_kv_heads * self.d_head, bias)
        self.out = linear(d_model, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        B, T, D = x.shape
        q_BHTE = context.rotate(self.q(x).view(B, T, self.n_heads, self.d_head).transpose(1, 2), "q")
        if context.memory is not None:
            kept = self.remember(context.memory) if state is None else state
            assert isinstance(kept, MemoryState)
            k_BKSE, v_BKSE = kept.keys, kept.values
        else:
            k_BKSE, v_BKSE = self._keys_values(x)
            k_BKSE = context.rotate(k_BKSE, "k")
            if state is not None:
                assert isinstance(state, KeyValueState)
                k_BKSE, v_BKSE = state.append(k_BKSE, v_BKSE)
        out_BHTE = attend(q_BHTE, k_BKSE, v_BKSE, context.mask(self.rule), context.bias,
                          dropout=self.dropout if self.training else 0.0)
        return self.out(out_BHTE.transpose(1, 2).reshape(B, T, D))

    def init_state(self, batch: int, capacity: int) -> KeyValueState:
        return KeyValueState(self.kv.weight.new_empty(2, batch, self.n_kv_heads, capacity, self.d_head))

    def remember(self, memory: Memory) -> MemoryState:
        return MemoryState(*self._keys_values(memory.hidden))

    def _keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        k_BKSE, v_BKSE = self.kv(source_BSD).unflatten(-1, (2, self.n_kv_heads, self.d_head)).permute(2, 0, 3, 1, 4)
        return k_BKSE, v_BKSE


class RotaryMultiHeadAttention(MultiHeadAttention):
    """`mha` whose position encoding, unless another is named, is `rope` (Su 2021)."""

    stands_for: ClassVar[Mapping[str, Any] | None] = {"attention": "mha", "position": "rope"}

    def __init__(self, d_model: int, n_heads: int, **options: Any) -> None:
        super().__init__(d_model, n_heads, **options)


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, bias: Tensor | None = None, *,
           dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias, where the mask allows) v, by torch's fused kernels: `[B, H, T, E]`."""
    allowed, causal = mask.allowed, mask.causal
    if bias is not None:
        if causal:
            T = q_BHTE.shape[2]
            allowed, causal = torch.ones(T, T, dtype=torch.bool, device=bias.device).tril(), False
        bias = bias.to(q_BHTE.dtype)
        allowed = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
    return F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSE, attn_mask=allowed, is_causal=causal,
                                          dropout_p=dropout, enable_gqa=k_BKSE.shape[1] != q_BHTE.shape[1])


class KeyValueState(State):
    """Keys and values of the columns so far, in a buffer `[2, B, K, C, E]` for C columns."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self._length = buffer, 0

    def append(self, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Remember T more columns; returns all keys and values `[B, K, S, E]`."""
        stop, capacity = self._length + k_BKTE.shape[2], self.buffer.shape[3]
        if stop > capacity:
            raise StateError(f"the state holds {capacity} tokens, and {stop} were given; make it with a larger capacity")
        self.buffer[0, :, :, self._length:stop] = k_BKTE
        self.buffer[1, :, :, self._length:stop] = v_BKTE
        self._length = stop
        return self.buffer[0, :, :, :stop], self.buffer[1, :, :, :stop]

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def reorder(self, index: Tensor) -> None:
        self.buffer = self.buffer.index_select(1, index)

    def truncate(self, length: int) -> None:
        self._length = min(length, self._length)
