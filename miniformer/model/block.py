"""A block (attention, then feed-forward, each on a residual branch) and the stack of them.

A branch f, which is attention or feed-forward, changes the residual stream x by where its norms are placed:

    pre:       x + drop(f(norm(x)))             as in GPT-2 and Llama
    post:      norm(x + drop(f(x)))             as in the first transformer and BERT
    sandwich:  x + drop(norm_out(f(norm(x))))   as in Gemma 2

A parallel block has one branch instead of two, f = attention + feed-forward, as in GPT-J.

In a decoder beside an encoder another branch, the cross-attention to the encoder's output, stands between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniformer.config.model_config import TransformerConfig
from miniformer.config.slots import LAYER_SLOTS
from miniformer.kernel.assembly import Part
from miniformer.kernel.context import Context, Memory, Record
from miniformer.kernel.interfaces import Attention, FeedForward, Norm, PositionEncoding
from miniformer.kernel.spec import build
from miniformer.kernel.state import State

from .init import dropout_of


class Block(nn.Module):
    """One layer, from the parts it is given: `[B, T, D] -> [B, T, D]`.

    Args:
        attention, ffn: what its branches compute.
        norm: makes a fresh norm, as often as the arrangement has one.
        cross: looks at the memory of the context `reading` (`Context.for_memory`), between the two.
        dropout: on each branch, in training.
        norm_placement, parallel: the arrangement; see the module.
    """

    def __init__(self, attention: Attention, ffn: FeedForward, norm: Callable[[], Norm], *, cross: Attention | None = None,
                 dropout: float = 0.0, norm_placement: Literal["pre", "post", "sandwich"] = "pre",
                 parallel: bool = False) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn, self.dropout = attention, cross, ffn, dropout_of(dropout)
        self.norm_placement, self.parallel = norm_placement, parallel
        sandwich = norm_placement == "sandwich"
        self.norm_attention = norm()
        self.norm_attention_out = norm() if sandwich else None
        self.norm_cross = None if cross is None or parallel else norm()
        self.norm_cross_out = norm() if sandwich and self.norm_cross is not None else None
        self.norm_ffn = None if parallel else norm()
        self.norm_ffn_out = norm() if sandwich and not parallel else None

    def forward(self, x: Tensor, context: Context, state: State | None = None, reading: Context | None = None,
                cross_state: State | None = None) -> Tensor:
        branches: list[Callable[[Tensor], Tensor]] = [lambda h: self.attention(h, context, state)]
        if self.cross is not None:
            cross = self.cross
            branches.append(lambda h: cross(h, reading, cross_state))
        branches.append(lambda h: self.ffn(h, context))
        if self.parallel:
            return self._branch(x, lambda h: sum(f(h) for f in branches), self.norm_attention, self.norm_attention_out)
        norms = [(self.norm_attention, self.norm_attention_out), (self.norm_cross, self.norm_cross_out),
                 (self.norm_ffn, self.norm_ffn_out)]
        for f, (norm, norm_out) in zip(branches, [pair for pair in norms if pair[0] is not None], strict=True):
            assert norm is not None
            x = self._branch(x, f, norm, norm_out)
        return x

    def _branch(self, x: Tensor, f: Callable[[Tensor], Any], norm: Norm, norm_out: Norm | None) -> Tensor:
        if self.norm_placement == "post":
            return norm(x + self.dropout(f(x)))
        y = f(norm(x))
        return x + self.dropout(y if norm_out is None else norm_out(y))


class Stack(nn.Module):
    """The blocks of a config, their position encodings (equal ones built once), and the norm after the last.

    Args:
        config: the model's.
        cross: the blocks look at a memory too, each with the config's cross-attention.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False) -> None:
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
                  partial(build, Norm, layer.norm, config.d_model),
                  cross=build(Attention, config.cross_attention, config.d_model, config.n_heads) if cross else None,
                  dropout=config.dropout, norm_placement=config.norm_placement, parallel=config.parallel)
            for layer, mixer in zip(specs, mixers))
        ends_normalised = config.norm_placement == "post"
        self.norm = nn.Identity() if ends_normalised else build(Norm, config.norm, config.d_model)
        self.activation_checkpointing = config.activation_checkpointing

    def init_states(self, batch: int, capacity: int) -> list[State | None]:
        """An empty state for each block, None where it has none."""
        return [block.attention.init_state(batch, capacity) for block in self.layers]

    def remember(self, memory: Memory) -> list[State | None]:
        """What the cross-attention of each block keeps of a memory, None where it keeps nothing."""
        return [None if block.cross is None else block.cross.remember(memory) for block in self.layers]

    def parts(self, config: TransformerConfig, which: str = "") -> Iterator[Part]:
        """The rows of the blocks and of the last norm in a model's account, each named `which` first."""
        for i, (layer, block) in enumerate(zip(config.layer_specs(), self.layers, strict=True)):
            slots = {slot: getattr(layer, slot) for slot in LAYER_SLOTS}
            cross = {} if block.cross is None else {"cross_attention": config.cross_attention}
            yield Part(f"{which}layer {i}", {**slots, **cross}, (block,))
        if not isinstance(self.norm, nn.Identity):
            yield Part(f"{which}norm", {"norm": config.norm}, (self.norm,))

    @property
    def layers(self) -> list[Block]:
        """The blocks, as what they are."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def encodings(self) -> list[PositionEncoding]:
        """The position encodings, as what they are."""
        return list(self.positions)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context, states: Sequence[State | None] | None = None,
                memory: Memory | None = None, cross_states: Sequence[State | None] | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, D]`; `states` and `cross_states` hold one for each block, which look at `memory`."""
        reading = None if memory is None else context.for_memory(memory)
        signals = context.signals(self.encodings)
        x = signals[0].encoding.embed(x, context.layout.positions)
        for block in self.layers:  # before the blocks, so that a recomputed block finds what it found at first
            if block.attention.masked:
                context.mask(block.attention.rule)
        if reading is not None:
            reading.mask()
        contexts = [replace(context, signal=signal) for signal in signals]
        for i, block in enumerate(self.layers):
            here = contexts[self.which[i]]
            if self.activation_checkpointing and self.training and states is None and torch.is_grad_enabled():
                x = _recomputed(block, x, here, reading)
            else:
                x = block(x, here, None if states is None else states[i], reading,
                          None if cross_states is None else cross_states[i])
        return self.norm(x)


def compile_blocks(model: nn.Module) -> None:
    """Have each block of a model compiled when it is first called: small graphs, which are soon made."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def _recomputed(block: nn.Module, x: Tensor, context: Context, reading: Context | None) -> Tensor:
    """The block, run again in backward instead of keeping its activations; what it records counts once."""

    def run(x: Tensor) -> tuple[Tensor, list[Record]]:
        inner = replace(context, records=[])
        return block(x, inner, None, reading and replace(reading, records=inner.records)), inner.records

    out, records = checkpoint(run, x, use_reentrant=False)
    context.records.extend(records)
    return out
