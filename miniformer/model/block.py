"""A block (attention, then feed-forward, each on a residual branch) and the stack of them.

    pre-norm:   x = x + drop(attention(norm(x)));   x = x + drop(ffn(norm(x)))
    post-norm:  x = norm(x + drop(attention(x)));   x = norm(x + drop(ffn(x)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.context import Context, Record
from miniformer.kernel.interfaces import Attention, FeedForward, Norm, PositionEncoding
from miniformer.kernel.spec import build
from miniformer.kernel.state import State


class Block(nn.Module):
    """One layer, from the parts it is given: `[B, T, D] -> [B, T, D]`."""

    def __init__(self, attention: Attention, ffn: FeedForward, norm_attention: Norm, norm_ffn: Norm, *,
                 dropout: float = 0.0, pre_norm: bool = True) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.norm_attention, self.norm_ffn = norm_attention, norm_ffn
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.norm_attention(x), context, state))
            return x + self.dropout(self.ffn(self.norm_ffn(x), context))
        x = self.norm_attention(x + self.dropout(self.attention(x, context, state)))
        return self.norm_ffn(x + self.dropout(self.ffn(x, context)))


class Stack(nn.Module):
    """The blocks of a config, their position encodings (equal ones built once), and the norm after the last."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        specs = config.layer_specs()
        encodings = [config.position]
        for layer in specs:
            assert layer.position
            if layer.position not in encodings:
                encodings.append(layer.position)
        self.which = [encodings.index(layer.position) for layer in specs if layer.position]
        self.positions = nn.ModuleList(
            build(PositionEncoding, spec, config.d_model, config.n_heads, config.max_seq_len) for spec in encodings)
        self.blocks = nn.ModuleList(
            Block(build(Attention, layer.attention, config.d_model, config.n_heads),
                  build(FeedForward, layer.ffn, config.d_model, config.d_ff),
                  build(Norm, layer.norm, config.d_model), build(Norm, layer.norm, config.d_model),
                  dropout=config.dropout, pre_norm=config.pre_norm) for layer in specs)
        self.norm = build(Norm, config.norm, config.d_model) if config.pre_norm else nn.Identity()
        self.activation_checkpointing = config.activation_checkpointing

    def init_states(self, batch: int, capacity: int) -> list[State | None]:
        """An empty state for each block, None where it has none."""
        return [block.attention.init_state(batch, capacity) for block in self.layers]

    @property
    def layers(self) -> list[Block]:
        """The blocks, as what they are."""
        return list(self.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context, states: Sequence[State | None] | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, D]`; `states` holds one for each block."""
        signals = context.signals(list(self.positions))  # type: ignore[arg-type]
        x = signals[0].encoding.embed(x, context.layout.positions)
        for block in self.layers:  # before the blocks, so that a recomputed block finds what it found at first
            context.mask(block.attention.rule)
        for i, block in enumerate(self.layers):
            here = replace(context, signal=signals[self.which[i]])
            state = None if states is None else states[i]
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = _recomputed(block, x, here)
            else:
                x = block(x, here, state)
        return self.norm(x)


def _recomputed(block: nn.Module, x: Tensor, context: Context) -> Tensor:
    """The block, run again in backward instead of keeping its activations; what it records counts once."""

    def run(x: Tensor) -> tuple[Tensor, list[Record]]:
        inner = replace(context, records=[])
        return block(x, inner), inner.records

    out, records = checkpoint(run, x, use_reentrant=False)
    context.records.extend(records)
    return out
