"""`Seq2SeqTransformer`: an encoder that sees its whole source, and a decoder that writes the target while looking at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.loop import Feed
from miniformer.decoding.state import EncoderDecoderState, ModelState
from miniformer.kernel.assembly import Part, Readout
from miniformer.kernel.context import Context, Memory, Record
from miniformer.kernel.errors import SpecError, StateError, UserError
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.kernel.spec import build
from miniformer.kernel.task import Batch
from miniformer.ops.linear import speed_up
from miniformer.ops.room import empty_room, float_type

from .assembly import BlockAssembly, state_or_none
from .block import Stack
from .init import dropout_of, embedding, linear


class Seq2SeqTransformer(BlockAssembly):
    """Encoder and decoder of the parts that the config names (Vaswani 2017, arXiv:1706.03762).

    Both stacks have the config's layers; the decoder's are causal, and each has a cross-attention after its attention.
    Where rows are packed, a document of the target looks at the document of the source that has its number.
    """

    assembly: ClassVar[str] = "seq2seq"
    has_source: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.causal:
            raise SpecError("causal: the encoder of a seq2seq model sees its whole source, and its decoder never sees later "
                            "tokens; leave it out")
        self.embedding = embedding(config.vocab_size, config.d_model)
        self.source_embedding: nn.Embedding | nn.Linear
        if config.input_dim is not None:
            self.source_embedding = linear(config.input_dim, config.d_model)
        else:
            self.source_embedding = self.embedding if config.share_embeddings else embedding(config.vocab_size, config.d_model)
        self.dropout = dropout_of(config.dropout)
        self.encoder, self.decoder = Stack(config), Stack(config, cross=True)
        for block in self.decoder.layers:
            if block.cross is not None and block.cross.rule is not None:
                raise SpecError(f"cross_attention: {config.cross_attention.name!r} with {block.cross.rule} compares positions "
                                "in one sequence, and source and target are two; leave that option out")
        self.head: Head = build(Head, config.head, config.d_model, config.n_outputs)
        self.head.tie(cast(nn.Parameter, self.embedding.weight))
        speed_up(self)

    @classmethod
    def least_numbers(cls, config: TransformerConfig) -> int:
        return config.least_numbers(stacks=2)

    def forward(self, source: Tensor | Memory, target: Tensor, context: Context | None = None,
                state: EncoderDecoderState | None = None, readout: Readout | None = None, *,
                source_layout: Layout | None = None) -> tuple[Any, Tensor, EncoderDecoderState | None]:
        """Outputs for target tokens `[B, T]`, hidden states of the source `[B, S, D]`, and the `state` argument.

        Args:
            source: token ids `[B, S]`, features `[B, S, F]` where the config has `input_dim`, or what `encode` made of them.
            target: token ids; the output at a token predicts the next, so labels are the target shifted left by one.
            context: the target's layout, and a list for what components record; None: unpadded rows.
            state: of the tokens before, which these follow; it is extended. `source` must then be its `memory`.
            readout: makes the first result from hidden states `[B, T, D]` and the head; None: logits `[B, T, O]`.
            source_layout: the positions of the source tokens; None: unpadded rows.

        Raises:
            SpecError: a sequence is longer than the position encoding goes.
            StateError: the state was made for another source.
        """
        if state is not None and source is not state.memory:
            raise StateError("this state was made for another source; give its own: model(state.memory, target, state=state)")
        context = self._context(target, context, state, self.decoder, causal=True)
        memory = source if isinstance(source, Memory) else self.encode(source, source_layout, context.records)
        x = self.dropout(self.embedding(target))
        if state is None:
            x = self.decoder(x, context, memory=memory)
        else:
            x = self.decoder(x, context, state.layers, memory, state.cross)
        return self.head(x) if readout is None else readout(x, self.head), memory.hidden, state

    def encode(self, source: Tensor, layout: Layout | None = None, records: list[Record] | None = None) -> Memory:
        """The encoder's output for source tokens `[B, S]`, which is all that the decoder sees of them.

        Args:
            source: as in `forward`.
            layout: where the tokens sit; None: unpadded rows.
            records: collects what components note.
        """
        context = Context.plain(source, records=records)
        if layout is not None:
            context = replace(context, layout=layout)
        context = self._context(source, context, None, self.encoder, causal=False)
        if source.is_floating_point():
            source = source.to(float_type(self.source_embedding))
        return Memory(self.encoder(self.dropout(self.source_embedding(source)), context), context.layout)

    def init_state(self, memory: Memory, capacity: int) -> EncoderDecoderState:
        """A state for targets of up to `capacity` tokens that answer `memory`; each layer looks through the memory once.

        Raises:
            StateError: an attention of the decoder cannot be run step by step.
        """
        self._check_length(capacity, self.decoder)
        layers = self.decoder.init_states(memory.hidden.shape[0], capacity)
        return EncoderDecoderState(layers, self.decoder.remember(memory), memory, capacity)

    def empty_state(self, batch: int, capacity: int, source_length: int) -> EncoderDecoderState:
        hidden = empty_room(self.embedding, batch, source_length, self.config.d_model)
        return self.init_state(Memory(hidden, Layout.full(batch, source_length, device=hidden.device)), capacity)

    def parts(self) -> Iterator[Part]:
        position, modules = {"position": self.config.position}, (self.source_embedding, self.encoder.positions)
        yield Part("source embedding", position, modules)
        yield from self.encoder.parts(self.config, "encoder ")
        yield Part("target embedding", position, (self.embedding, self.decoder.positions))
        yield from self.decoder.parts(self.config, "decoder ")
        yield Part("head", {"head": self.config.head}, (self.head,))

    @property
    def generates(self) -> bool:
        return True

    def read(self, batch: Batch, context: Context | None = None, readout: Readout | None = None) -> Any:
        if batch.source is None:
            raise UserError("this batch has no source for the encoder; its task trains a decoder or an encoder alone")
        context = context or Context(batch.layout)
        return self(batch.source.inputs, batch.inputs, context, readout=readout, source_layout=batch.source.layout)[0]

    def feed(self, input_ids: Tensor, max_new_tokens: int, *, layout: Layout | None = None, use_state: bool = True,
             bos_id: int | None = None) -> Feed:
        bos_id = self.config.bos_id if bos_id is None else bos_id
        if not 0 <= bos_id < self.config.vocab_size:
            raise UserError(f"bos_id: expected one of the {self.config.vocab_size} tokens; found {bos_id}")
        layout = self._prompt_layout(input_ids, layout)
        memory, B = self.encode(input_ids.to(layout.positions.device), layout), len(input_ids)
        state = state_or_none(lambda: self._growing(self.decoder, partial(self.init_state, memory), 1, max(1, max_new_tokens)),
                              use_state)

        def run(memory: Memory | None, target: Tensor, context: Context, state: ModelState | None,
                readout: Readout) -> Tensor:
            logits: Tensor = self(memory, target, context, state, readout)[0]
            return logits

        start = torch.full((B, 1), bos_id, device=memory.hidden.device)
        return Feed(run, start, Layout.full(B, 1, device=start.device), state, memory)
