"""A block (attention, then feed-forward, each on a residual branch) and the stack of them.

A branch f, which is attention or feed-forward, changes the residual stream x by where its norms are placed:

    pre:       x + drop(f(norm(x)))             as in GPT-2 and Llama
    post:      norm(x + drop(f(x)))             as in the first transformer and BERT
    sandwich:  x + drop(norm_out(f(norm(x))))   as in Gemma 2

A parallel block has one branch instead of two, f = attention + feed-forward, as in GPT-J.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.context import Context, Record
from miniformer.kernel.interfaces import Attention, FeedForward, Norm, PositionEncoding
from miniformer.kernel.spec import build
from miniformer.kernel.state import State


class Block(nn.Module):
    """One layer, from the parts it is given: `[B, T, D] -> [B, T, D]`.

    Args:
        attention, ffn: what its branches compute.
        norm: makes a fresh norm, as often as the arrangement has one.
        dropout: on each branch, in training.
        norm_placement, parallel: the arrangement; see the module.
    """

    def __init__(self, attention: Attention, ffn: FeedForward, norm: Callable[[], Norm], *, dropout: float = 0.0,
                 norm_placement: Literal["pre", "post", "sandwich"] = "pre", parallel: bool = False) -> None:
        super().__init__()
        self.attention, self.ffn, self.dropout = attention, ffn, nn.Dropout(dropout)
        self.norm_placement, self.parallel = norm_placement, parallel
        sandwich = norm_placement == "sandwich"
        self.norm_attention = norm()
        self.norm_attention_out = norm() if sandwich else None
        self.norm_ffn = None if parallel else norm()
        self.norm_ffn_out = norm() if sandwich and not parallel else None

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        def attention(h: Tensor) -> Tensor:
            return self.attention(h, context, state)

        def ffn(h: Tensor) -> Tensor:
            return self.ffn(h, context)

        if self.norm_ffn is None:
            return self._branch(x, lambda h: attention(h) + ffn(h), self.norm_attention, self.norm_attention_out)
        x = self._branch(x, attention, self.norm_attention, self.norm_attention_out)
        return self._branch(x, ffn, self.norm_ffn, self.norm_ffn_out)

    def _branch(self, x: Tensor, f: Callable[[Tensor], Tensor], norm: Norm, norm_out: Norm | None) -> Tensor:
        if self.norm_placement == "post":
            return norm(x + self.dropout(f(x)))
        y = f(norm(x))
        return x + self.dropout(y if norm_out is None else norm_out(y))


class Stack(nn.Module):
    """The blocks of a config, their position encodings (equal ones built once), and the norm after the last."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        specs = config.layer_specs()
        mixers = [build(Attention, layer.attention, config.d_model, config.n_heads) for layer in specs]
        wanted = [(config.position, config.position_sizes(config.position))]
        for layer, mixer in zip(specs, mixers):
            assert layer.position
            wanted.append((layer.position, config.position_sizes(layer.position, mixer)))
        encodings = [one for i, one in enumerate(wanted) if one not in wanted[:i]]
        self.which = [encodings.index(one) for one in wanted[1:]]
        self.positions = nn.ModuleList(build(PositionEncoding, spec, *sizes) for spec, sizes in encodings)
        self.blocks = nn.ModuleList(
            Block(mixer, build(FeedForward, layer.ffn, config.d_model, config.d_ff),
                  partial(build, Norm, layer.norm, config.d_model), dropout=config.dropout,
                  norm_placement=config.norm_placement, parallel=config.parallel) for layer, mixer in zip(specs, mixers))
        ends_normalised = config.norm_placement == "post"
        self.norm = nn.Identity() if ends_normalised else build(Norm, config.norm, config.d_model)
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
            if block.attention.masked:
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
