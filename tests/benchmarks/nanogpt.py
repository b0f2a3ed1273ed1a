"""A decoder as plain torch code, as one file that people train would have it: the peer without a framework.

Pre-norm blocks with biases, learned positions, queries, keys and values of one product, causal
`scaled_dot_product_attention`, GELU, a head tied to the token embedding, plain cross-entropy; no cache in decoding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import Size


class Attention(nn.Module):
    """Causal multi-head attention: `[B, T, D] -> [B, T, D]`."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q_BHTE, k_BHTE, v_BHTE = (part.view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2)
                                  for part in self.qkv(x).split(D, dim=2))
        out_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
        return self.out(out_BHTE.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Two matrices around a GELU; also what the contest's plugin wraps."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch after a layer norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(size.d_model), nn.LayerNorm(size.d_model)
        self.attention, self.ffn = Attention(size.d_model, size.n_heads), FeedForward(size.d_model, size.d_ff)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class NanoGPT(nn.Module):
    """The decoder.

    Args:
        size: how large.
        max_seq_len: positions that it knows.
    """

    def __init__(self, size: Size, max_seq_len: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(size.vocab_size, size.d_model), nn.Embedding(max_seq_len, size.d_model)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.n_layers))
        self.norm = nn.LayerNorm(size.d_model)
        self.head = nn.Linear(size.d_model, size.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))  # of a residual branch
                nn.init.normal_(parameter, std=0.02 / ((2 * size.n_layers) ** 0.5 if last else 1))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mean loss of the targets, or without any the logits `[B, V]` after the last token."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if targets is None:
            return self.head(x[:, -1])
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def write(self, ids: Tensor, count: int) -> Tensor:
        """Greedily, everything computed again at each step."""
        for _ in range(count):
            ids = torch.cat([ids, self(ids).argmax(dim=-1, keepdim=True)], dim=1)
        return ids
