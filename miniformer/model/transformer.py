"""`Transformer`: embedding, stack of blocks, head; an encoder, or with `causal` a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from miniformer.checkpoint.store import read_model, restore, write_model
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.context import Context
from miniformer.kernel.errors import SpecError, StateError
from miniformer.kernel.interfaces import Head, PositionEncoding
from miniformer.kernel.spec import build

from .block import Stack
from .init import embedding, linear
from .state import DecodingState

Readout = Callable[[Tensor, Head], Any]


class Transformer(nn.Module):
    """A transformer of the parts that its config names.

    The model computes hidden states; what is made of them is the caller's to say. By default that is the head's output
    at every position. A task passes a `readout` that asks the head only where it must.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: nn.Embedding | nn.Linear
        if config.input_dim is None:
            self.embedding = embedding(config.vocab_size, config.d_model)
        else:
            self.embedding = linear(config.input_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config)
        self.head: Head = build(Head, config.head, config.d_model, config.n_outputs)
        if isinstance(self.embedding, nn.Embedding):
            self.head.tie(cast(nn.Parameter, self.embedding.weight))

    def forward(self, inputs: Tensor, context: Context | None = None, state: DecodingState | None = None,
                readout: Readout | None = None) -> Any:
        """Outputs for token ids `[B, T]` or features `[B, T, F]`.

        Args:
            inputs: the tokens, or features where the config has `input_dim`.
            context: their layout, and a list that collects what components record; None: unpadded rows.
            state: what was seen before, which these tokens follow; it is extended.
            readout: what to return, from hidden states `[B, T, D]` and the head; None: logits `[B, T, O]`.

        Raises:
            SpecError: the sequence is longer than the position encoding goes.
        """
        context = self._context(inputs, context, state)
        if inputs.is_floating_point():
            inputs = inputs.to(self.embedding.weight.dtype)
        x = self.dropout(self.embedding(inputs))
        x = self.stack(x, context, None if state is None else state.layers)
        return self.head(x) if readout is None else readout(x, self.head)

    def init_state(self, batch: int, capacity: int) -> DecodingState:
        """An empty state for `batch` sequences of up to `capacity` tokens.

        Raises:
            StateError: the model is not causal, so that what it said of a token changes with later ones.
        """
        if not self.config.causal:
            raise StateError("only a causal model can be run step by step; this one has causal: false")
        self._check_length(capacity)
        return DecodingState(self.stack.init_states(batch, capacity), capacity)

    def _context(self, inputs: Tensor, context: Context | None, state: DecodingState | None) -> Context:
        """The caller's context, completed with what only the model knows."""
        if state is not None and context is None and state.layout is not None:
            follow = state.layout.following()
            steps = torch.arange(inputs.shape[1], device=inputs.device)
            context = Context(replace(follow, positions=follow.positions + steps,
                                      documents=follow.documents.expand(-1, inputs.shape[1])))
        elif context is None:
            context = Context.plain(inputs)
        self._check_length(inputs.shape[1] + (0 if state is None else state.length))
        keys = context.layout if state is None else state.extend(context.layout)
        # masks are made anew: they belong to one forward, and a compiled graph cannot hand rules back to its caller
        return replace(context, causal=self.config.causal, keys=keys, masks={})

    def _check_length(self, length: int) -> None:
        if length > self.config.max_seq_len:
            for encoding in self.stack.positions:
                assert isinstance(encoding, PositionEncoding)
                if not encoding.extrapolates:
                    raise SpecError(f"{length} tokens: position {self.config.position.name!r} ends at max_seq_len = "
                                    f"{self.config.max_seq_len}")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder, whole or not at all."""
        write_model(Path(folder), self.state_dict(), {"assembly": "transformer", "model": self.config.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Transformer:
        """The model that a folder holds, or the best one of a run folder.

        Raises:
            UserError: no model is there, it is damaged, or a component of it is not installed.
        """
        saved = read_model(Path(folder))
        model = cls(TransformerConfig.model_validate(saved.config["model"]))
        restore(model, saved)
        return model.eval()
