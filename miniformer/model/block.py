"""A block (attention, then feed-forward, each on a residual branch) and the stack of them.

    pre-norm:   x = x + drop(attention(norm(x)));   x = x + drop(ffn(norm(x)))
    post-norm:  x = norm(x + drop(attention(x)));   x = norm(x + drop(ffn(x)))

In a decoder beside an encoder a third branch, the cross-attention to the encoder's output, stands between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.context import Context, Memory, Record
from miniformer.kernel.interfaces import Attention, FeedForward, Norm, PositionEncoding
from miniformer.kernel.spec import build
from miniformer.kernel.state import State


class Block(nn.Module):
    """One layer, from the parts it is given: `[B, T, D] -> [B, T, D]`.

    With `cross` and its norm, the layer also looks at the memory of the context `reading` (`Context.reading`).
    """

    def __init__(self, attention: Attention, ffn: FeedForward, norm_attention: Norm, norm_ffn: Norm, *,
                 cross: Attention | None = None, norm_cross: Norm | None = None, dropout: float = 0.0,
                 pre_norm: bool = True) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn = attention, cross, ffn
        self.norm_attention, self.norm_cross, self.norm_ffn = norm_attention, norm_cross, norm_ffn
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x: Tensor, context: Context, state: State | None = None, reading: Context | None = None,
                cross_state: State | None = None) -> Tensor:
        x = self._branch(x, self.norm_attention, self.attention, context, state)
        if self.cross is not None:
            x = self._branch(x, self.norm_cross, self.cross, reading, cross_state)
        return self._branch(x, self.norm_ffn, self.ffn, context)

    def _branch(self, x: Tensor, norm: Any, part: Any, *given: Any) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(part(norm(x), *given))
        out: Tensor = norm(x + self.dropout(part(x, *given)))
        return out


class Stack(nn.Module):
    """The blocks of a config, their position encodings (equal ones built once), and the norm after the last.

    Args:
        config: the model's.
        cross: the blocks look at a memory too, each with the config's cross-attention.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False) -> None:
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
                  cross=build(Attention, config.cross_attention, config.d_model, config.n_heads) if cross else None,
                  norm_cross=build(Norm, layer.norm, config.d_model) if cross else None, dropout=config.dropout,
                  pre_norm=config.pre_norm) for layer in specs)
        self.norm = build(Norm, config.norm, config.d_model) if config.pre_norm else nn.Identity()
        self.activation_checkpointing = config.activation_checkpointing

    def init_states(self, batch: int, capacity: int) -> list[State | None]:
        """An empty state for each block, None where it has none."""
        return [block.attention.init_state(batch, capacity) for block in self.layers]

    def remember(self, memory: Memory) -> list[State | None]:
        """What the cross-attention of each block keeps of a memory, None where it keeps nothing."""
        return [None if block.cross is None else block.cross.remember(memory) for block in self.layers]

    @property
    def layers(self) -> list[Block]:
        """The blocks, as what they are."""
        return list(self.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context, states: Sequence[State | None] | None = None,
                memory: Memory | None = None, cross_states: Sequence[State | None] | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, D]`; `states` and `cross_states` hold one for each block, which look at `memory`."""
        reading = None if memory is None else context.reading(memory)
        signals = context.signals(list(self.positions))  # type: ignore[arg-type]
        x = signals[0].encoding.embed(x, context.layout.positions)
        for block in self.layers:  # before the blocks, so that a recomputed block finds what it found at first
            context.mask(block.attention.rule)
        if reading is not None:
            reading.mask()
        for i, block in enumerate(self.layers):
            here = replace(context, signal=signals[self.which[i]])
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = _recomputed(block, x, here, reading)
            else:
                x = block(x, here, None if states is None else states[i], reading,
                          None if cross_states is None else cross_states[i])
        return self.norm(x)


def _recomputed(block: nn.Module, x: Tensor, context: Context, reading: Context | None) -> Tensor:
    """The block, run again in backward instead of keeping its activations; what it records counts once."""

    def run(x: Tensor) -> tuple[Tensor, list[Record]]:
        inner = replace(context, records=[])
        return block(x, inner, None, reading and replace(reading, records=inner.records)), inner.records

    out, records = checkpoint(run, x, use_reentrant=False)
    context.records.extend(records)
    return out
