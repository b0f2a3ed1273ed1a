"""A block (attention, then feed-forward, each on a residual branch) and the stack of them.

A branch f, which is attention or feed-forward, changes the residual stream x by where its norms are placed:

    pre:       x + drop(f(norm(x)))             as in GPT-2 and Llama
    post:      norm(x + drop(f(x)))             as in the first transformer and BERT
    sandwich:  x + drop(norm_out(f(norm(x))))   as in Gemma 2

A parallel block has one branch instead of two, f = attention + feed-forward, as in GPT-J.

In the decoder of an encoder-decoder, a third branch stands between the two: the cross-attention to the encoder's output.
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
from miniformer.ops.switch import is_plain, with_this_choice
from miniformer.ops.torch_private import without_graph

from .init import dropout_of


class Block(nn.Module):
    """One layer of a stack: `[B, T, D] -> [B, T, D]`.

    Args:
        attention, ffn: the components of its branches.
        norm: makes a new norm, once for each place that the arrangement has.
        cross: a cross-attention between the two, which reads the memory of `forward`'s `memory_context`.
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

    def forward(self, x: Tensor, context: Context, state: State | None = None, memory_context: Context | None = None,
                cross_state: State | None = None) -> Tensor:
        """The residual stream `[B, T, D]` after this layer.

        Args:
            x: the stream before it.
            context: the layout of the tokens, and what their attention may see.
            state: the attention's, in decoding.
            memory_context: what the cross-attention reads (`Context.for_memory`); needed where there is one.
            cross_state: the cross-attention's, in decoding.
        """

        def attend(h: Tensor) -> Tensor:
            return self.attention(h, context, state)

        def attend_to_memory(h: Tensor) -> Tensor:
            assert self.cross is not None
            return self.cross(h, memory_context, cross_state)

        def feed_forward(h: Tensor) -> Tensor:
            return self.ffn(h, context)

        if self.parallel:
            branches = [attend, feed_forward] if self.cross is None else [attend, attend_to_memory, feed_forward]

            def compute_all(h: Tensor) -> Any:
                return sum(branch(h) for branch in branches)

            return self._branch(x, compute_all, self.norm_attention, self.norm_attention_out)
        x = self._branch(x, attend, self.norm_attention, self.norm_attention_out)
        if self.norm_cross is not None:
            x = self._branch(x, attend_to_memory, self.norm_cross, self.norm_cross_out)
        assert self.norm_ffn is not None
        return self._branch(x, feed_forward, self.norm_ffn, self.norm_ffn_out)

    def _branch(self, x: Tensor, compute: Callable[[Tensor], Any], norm: Norm, norm_out: Norm | None) -> Tensor:
        """The residual stream with one branch added, by the placement of its norms."""
        if self.norm_placement == "post":
            return norm(x + self.dropout(compute(x)))
        y = compute(norm(x))
        return x + self.dropout(y if norm_out is None else norm_out(y))


class Stack(nn.Module):
    """The blocks of a config, their position encodings (equal ones built once), and the norm after the last block.

    Args:
        config: of the model.
        cross: give each block the config's cross-attention, which reads a memory.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False) -> None:
        super().__init__()
        specs = config.layer_specs()
        mixers = [build(Attention, layer.attention, config.d_model, config.n_heads) for layer in specs]
        # the position encoding of the embeddings comes first, then that of each layer
        wanted = [(config.position, config.position_sizes(config.position))]
        for layer, mixer in zip(specs, mixers):
            assert layer.position
            wanted.append((layer.position, config.position_sizes(layer.position, mixer)))
        encodings: list[Any] = []  # specs cannot be hashed
        for encoding in wanted:
            if encoding not in encodings:
                encodings.append(encoding)
        self.encoding_of = [encodings.index(encoding) for encoding in wanted[1:]]
        self.positions = nn.ModuleList(build(PositionEncoding, spec, *sizes) for spec, sizes in encodings)
        self.blocks = nn.ModuleList()
        for layer, mixer in zip(specs, mixers):
            ffn = build(FeedForward, layer.ffn, config.d_model, config.d_ff)
            make_norm = partial(build, Norm, layer.norm, config.d_model)
            attention_to_memory = None
            if cross:
                attention_to_memory = build(Attention, config.cross_attention, config.d_model, config.n_heads,
                                            slot="cross_attention")
            self.blocks.append(Block(mixer, ffn, make_norm, cross=attention_to_memory, dropout=config.dropout,
                                     norm_placement=config.norm_placement, parallel=config.parallel))
        ends_normalised = config.norm_placement == "post"
        self.norm = nn.Identity() if ends_normalised else build(Norm, config.norm, config.d_model)
        self.activation_checkpointing = config.activation_checkpointing

    def init_states(self, batch: int, capacity: int) -> list[State | None]:
        """An empty state for each block; None for a block whose attention has none."""
        return [block.attention.init_state(batch, capacity) for block in self.layers]

    def remember(self, memory: Memory) -> list[State | None]:
        """What the cross-attention of each block keeps of a memory; None for one that keeps nothing."""
        return [None if block.cross is None else block.cross.remember(memory) for block in self.layers]

    def parts(self, config: TransformerConfig, prefix: str = "") -> Iterator[Part]:
        """The rows of the blocks and of the last norm in a model's account (`inspect`), whose names begin with `prefix`."""
        for i, (layer, block) in enumerate(zip(config.layer_specs(), self.layers, strict=True)):
            slots = {slot: getattr(layer, slot) for slot in LAYER_SLOTS}
            cross = {} if block.cross is None else {"cross_attention": config.cross_attention}
            yield Part(f"{prefix}layer {i}", {**slots, **cross}, (block,))
        if not isinstance(self.norm, nn.Identity):
            yield Part(f"{prefix}norm", {"norm": config.norm}, (self.norm,))

    @property
    def layers(self) -> list[Block]:
        """The blocks, with their type, which a ModuleList does not keep."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def encodings(self) -> list[PositionEncoding]:
        """The position encodings, with their type, which a ModuleList does not keep."""
        return list(self.positions)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context, states: Sequence[State | None] | None = None,
                memory: Memory | None = None, cross_states: Sequence[State | None] | None = None) -> Tensor:
        """`[B, T, D] -> [B, T, D]`, through all blocks.

        Args:
            x: embeddings of the tokens.
            context: their layout; what components record is added to it.
            states, cross_states: in decoding, one for each block.
            memory: what the cross-attentions read.
        """
        memory_context = None if memory is None else context.for_memory(memory)
        signals = context.signals(self.encodings)
        x = signals[0].encoding.embed(x, context.layout.positions)
        # Masks are built before the blocks and shared by them: a block that is recomputed in backward finds what it found.
        for block in self.layers:
            if block.attention.masked:
                context.mask(block.attention.rule)
        if memory_context is not None:
            memory_context.mask()
        contexts = [replace(context, signal=signal) for signal in signals]
        plain = not torch.compiler.is_compiling() and is_plain()
        recomputes = self.activation_checkpointing and self.training and states is None and torch.is_grad_enabled()
        for i, block in enumerate(self.layers):
            run = without_graph(block) if plain else block
            block_context = contexts[self.encoding_of[i]]
            if recomputes:
                x = _recomputed(run, x, block_context, memory_context)
            else:
                x = run(x, block_context, None if states is None else states[i], memory_context,
                        None if cross_states is None else cross_states[i])
        return self.norm(x)


def compile_blocks(model: nn.Module) -> None:
    """Have each block of a model compiled when it is first called: small graphs are made sooner than a large one."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def _recomputed(block: Callable[..., Tensor], x: Tensor, context: Context, memory_context: Context | None) -> Tensor:
    """What a block gives, without keeping its activations: backward runs the block again (Chen 2016, arXiv:1604.06174).

    What the block records is taken from its first run only, so that it counts once.
    """

    def run(x: Tensor) -> tuple[Tensor, list[Record]]:
        own = replace(context, records=[])
        own_memory = None if memory_context is None else replace(memory_context, records=own.records)
        return block(x, own, None, own_memory), own.records

    out, records = checkpoint(run if torch.compiler.is_compiling() else with_this_choice(run), x, use_reentrant=False)
    context.records.extend(records)
    return out
