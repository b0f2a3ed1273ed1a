"""Attention modules of other libraries as components: what a wrapper needs, and no more."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from x_transformers.x_transformers import Attention as XTransformersAttention
from x_transformers.x_transformers import Intermediates

from miniformer.kernel import Attention, Context, State


def allowed(context: Context) -> Tensor:
    """[B, T, S], True where a query may see a key."""
    mask, (B, T) = context.mask(), context.layout.shape
    if mask.allowed is not None:
        return mask.allowed.expand(B, 1, -1, -1)[:, 0]
    S, device = (context.keys or context.layout).shape[1], context.layout.documents.device
    every = torch.ones(B, T, S, dtype=torch.bool, device=device)
    return every.tril() if mask.causal else every


class TorchAttention(Attention):
    """torch's own nn.MultiheadAttention; it has no memory of earlier calls."""

    cross: ClassVar[bool] = True
    applies: ClassVar[frozenset[str]] = frozenset({"bias"})

    def __init__(self, d_model: int, n_heads: int, *, bias: bool = True) -> None:
        super().__init__(d_model, n_heads)
        self.inner = nn.MultiheadAttention(d_model, n_heads, bias=bias, batch_first=True)

    def forward(self, x, context, state=None):
        source = x if context.memory is None else context.memory.hidden
        hidden = ~allowed(context).repeat_interleave(self.n_heads, dim=0)  # True: may not attend, unlike ours
        mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        if context.bias is not None:
            mask = mask + context.bias.to(x.dtype).expand(x.shape[0], -1, -1, -1).flatten(0, 1)
        return self.inner(x, source, source, attn_mask=mask, need_weights=False)[0]


class XTransformers(Attention):
    """The Attention of x-transformers, with its own cache."""

    cross: ClassVar[bool] = True
    applies: ClassVar[frozenset[str]] = frozenset({"bias"})

    def __init__(self, d_model: int, n_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__(d_model, n_heads)
        self.inner = XTransformersAttention(d_model, d_model // n_heads, heads=n_heads, qk_norm=qk_norm)

    def forward(self, x, context, state=None):
        source = None if context.memory is None else context.memory.hidden
        cached = state if context.memory is None else None
        bias = None if context.bias is None else context.bias.to(x.dtype)  # ALiBi's, for one, is float32 in any model
        out, seen = self.inner(x, context=source, attn_mask=allowed(context)[:, None], attn_bias=bias,
                               cache=None if cached is None or cached.pair is None else Intermediates(cached_kv=cached.pair),
                               return_intermediates=True)
        if cached is not None:
            cached.pair = seen.cached_kv
        return out

    def init_state(self, batch, capacity):
        return TheirCache()


class TheirCache(State):
    """Keys and values as x-transformers hands them out: tensors that grow."""

    def __init__(self):
        self.pair = None

    @property
    def length(self):
        return 0 if self.pair is None else self.pair[0].shape[-2]

    @property
    def nbytes(self):
        return 0 if self.pair is None else sum(one.nbytes for one in self.pair)

    def reorder(self, index):
        self.pair = tuple(one[index] for one in self.pair)

    def truncate(self, length):
        self.pair = None if self.pair is None or length == 0 else tuple(one[..., :length, :] for one in self.pair)


class CausalByCall(XTransformers):
    """The Attention of x-transformers, told by each call whether it is causal, or given a mask where that is not enough."""

    flash: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.inner = XTransformersAttention(d_model, d_model // n_heads, heads=n_heads, flash=self.flash)

    def forward(self, x, context, state=None):
        mask = context.mask()
        if context.memory is not None or state is not None or context.bias is not None or mask.allowed is not None:
            return super().forward(x, context, state)
        return self.inner(x, causal=mask.causal)


class CausalByCallInFlash(CausalByCall):
    """The one with torch's fused kernel."""

    flash = True


class Forgetting(XTransformers):
    """The Attention of x-transformers with ALiBi that depends on the data, as in the Forgetting Transformer."""

    cross: ClassVar[bool] = False
    causal_only: ClassVar[bool] = True
    applies: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.inner = XTransformersAttention(d_model, d_model // n_heads, heads=n_heads, causal=True, data_dependent_alibi=True)
