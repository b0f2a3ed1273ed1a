"""`Transformer`: embedding, stack of blocks, head; an encoder, or with `causal` a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.loop import Feed
from miniformer.decoding.state import ModelState
from miniformer.kernel.assembly import Part, Readout
from miniformer.kernel.context import Context, Memory
from miniformer.kernel.errors import StateError, UserError
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.kernel.spec import build
from miniformer.kernel.task import Batch
from miniformer.ops.linear import speed_up
from miniformer.ops.room import float_type

from .assembly import BlockAssembly, state_or_none
from .block import Stack
from .init import dropout_of, embedding, linear


class Transformer(BlockAssembly):
    """A transformer of the parts that its config names.

    By default it gives the head's output at every position. A task passes a `readout`, which is given the hidden states and the
    head, and asks the head only at the positions that the task needs.
    """

    assembly: ClassVar[str] = "transformer"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embedding: nn.Embedding | nn.Linear
        if config.input_dim is None:
            self.embedding = embedding(config.vocab_size, config.d_model)
        else:
            self.embedding = linear(config.input_dim, config.d_model)
        self.dropout = dropout_of(config.dropout)
        self.stack = Stack(config)
        self.head: Head = build(Head, config.head, config.d_model, config.n_outputs)
        if isinstance(self.embedding, nn.Embedding):
            self.head.tie(cast(nn.Parameter, self.embedding.weight))
        speed_up(self)

    @classmethod
    def least_numbers(cls, config: TransformerConfig) -> int:
        return config.least_numbers()

    def forward(self, inputs: Tensor, context: Context | None = None, state: ModelState | None = None,
                readout: Readout | None = None) -> Any:
        """Outputs for token ids `[B, T]` or features `[B, T, F]`.

        Args:
            inputs: the tokens, or features where the config has `input_dim`.
            context: their layout, and a list for what components record; None: unpadded rows.
            state: of the tokens before, which these follow; it is extended.
            readout: makes the result from hidden states `[B, T, D]` and the head; None: logits `[B, T, O]`.

        Raises:
            SpecError: the sequence is longer than the position encoding goes.
        """
        context = self._context(inputs, context, state, self.stack, self.config.causal)
        if inputs.is_floating_point():
            inputs = inputs.to(float_type(self.embedding))
        x = self.dropout(self.embedding(inputs))
        x = self.stack(x, context, None if state is None else state.layers)
        return self.head(x) if readout is None else readout(x, self.head)

    def init_state(self, batch: int, capacity: int) -> ModelState:
        """An empty state for `batch` sequences of up to `capacity` tokens.

        Raises:
            StateError: the model is not causal, so its outputs for a token change with later tokens.
        """
        if not self.config.causal:
            raise StateError("only a causal model can be run step by step; this one has causal: false")
        self._check_length(capacity, self.stack)
        return ModelState(self.stack.init_states(batch, capacity), capacity)

    def empty_state(self, batch: int, capacity: int, source_length: int = 0) -> ModelState:
        return self.init_state(batch, capacity)

    def parts(self) -> Iterator[Part]:
        yield Part("embedding", {"position": self.config.position}, (self.embedding, self.stack.positions))
        yield from self.stack.parts(self.config)
        yield Part("head", {"head": self.config.head}, (self.head,))

    @property
    def generates(self) -> bool:
        return self.config.causal

    def read(self, batch: Batch, context: Context | None = None, readout: Readout | None = None) -> Any:
        return self(batch.inputs, context or Context(batch.layout), readout=readout)

    def feed(self, input_ids: Tensor, max_new_tokens: int, *, layout: Layout | None = None, use_state: bool = True,
             bos_id: int | None = None) -> Feed:
        if not self.generates:
            raise UserError("this model sees later tokens (causal: false), so it cannot generate")
        if bos_id is not None:
            raise UserError("bos_id: this model goes on from its prompt; only an encoder-decoder starts from a token")
        layout = self._prompt_layout(input_ids, layout)
        B, T = layout.shape
        columns = T + max(0, max_new_tokens - 1)  # none sees the last
        state = state_or_none(lambda: self._growing(self.stack, partial(self.init_state, B), T, columns), use_state)

        def run(_: Memory | None, inputs: Tensor, context: Context, state: ModelState | None, readout: Readout) -> Tensor:
            logits: Tensor = self(inputs, context, state, readout)
            return logits

        return Feed(run, input_ids.to(layout.positions.device), layout, state)
