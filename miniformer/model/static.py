"""Steps of one token as one compiled graph: whatever changes from step to step is written into tensors that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.kernel.state import State

from .decoding import Feed, Run
from .state import DecodingState

Step = Callable[..., Tensor]


def compiled_step() -> Step:
    """The step of a `StaticFeed`, compiled when it is first used, and anew for another number of rows."""
    return torch.compile(_step, fullgraph=True)


class StaticFeed(Feed):
    """A feed that reads prompts as any does, and after them runs a compiled step for each token.

    Rows that ended keep their place, unseen, since with fewer rows the step would be compiled anew.

    Args:
        feed: that it goes on for; nothing was fed yet.
        step: see `compiled_step`.

    Raises:
        StateError: a state changes its shapes from step to step.
    """

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed.run, feed.start, feed.start_layout, feed.state, feed._memory)
        self.step = step
        self._rows: list[int] | None = None  # None: no step was made
        if feed.state is not None:
            _static(feed.state, torch.zeros(1, dtype=torch.long, device=feed.start.device))

    def __call__(self, tokens: Tensor) -> Tensor:
        state = self.state
        if state is None or state.layout is None or tokens.shape[1] > 1:
            return super().__call__(tokens)
        if self._rows is None:
            self._begin(state)
        rows = self._rows
        assert rows is not None
        if len(rows) == len(self._latest):
            self._latest.copy_(tokens)
        else:
            self._latest[rows] = tokens
        logits_BV = self.step(self.run, state.memory, self._latest, self._here, self._keys, self._column, *self._layers)
        self._column += 1
        self._here.positions.add_(1)
        for layer in state.layers:
            if layer is not None:
                layer.stepped()
        state.layout = self._keys.columns(state.length + 1)
        return logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]

    def keep(self, index: Sequence[int]) -> None:
        if self._rows is None or self.state is None:
            super().keep(index)
            return
        chosen = [self._rows[i] for i in index]
        if chosen == sorted(set(chosen)):
            self._rows = chosen
        else:  # as a beam search asks for
            super().keep(chosen)
            self._rows = None

    @property
    def can_join(self) -> bool:
        return False

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._rows = None

    def _begin(self, state: DecodingState) -> None:
        """Put all that a step needs into tensors of their final shape."""
        layout, B, device = state.layout, len(self.start), self.start.device
        assert layout is not None
        self._rows, self._latest = list(range(B)), self.start.new_zeros(B, 1)
        self._column = torch.tensor([state.length], device=device)
        positions, documents = (torch.zeros(B, state.capacity, dtype=torch.long, device=device) for _ in range(2))
        positions[:, :state.length], documents[:, :state.length] = layout.positions, layout.documents
        self._keys = Layout(positions, documents, aligned=False)
        following = layout.following()
        self._here = replace(self._keys, positions=following.positions.clone(), documents=following.documents.clone())
        self._layers = _static(state, self._column)


def _static(state: DecodingState, column: Tensor) -> tuple[list[State | None], list[State | None]]:
    """The states of the layers as a step has them, and of the cross-attentions, if there are any."""
    cross: list[State | None] = getattr(state, "cross", [])
    return ([layer and layer.static(column) for layer in state.layers], [layer and layer.static(column) for layer in cross])


class _StaticState(DecodingState):
    """The states of a model's layers in a compiled step, and the layout of all columns, filled or not."""

    def __init__(self, layers: list[State | None], cross: list[State | None], memory: Memory | None, keys: Layout,
                 column: Tensor) -> None:
        self.layers, self.cross, self.memory, self.layout, self.column = layers, cross, memory, keys, column

    def extend(self, layout: Layout) -> Layout:
        assert self.layout is not None
        self.layout.positions.index_copy_(1, self.column, layout.positions)
        self.layout.documents.index_copy_(1, self.column, layout.documents)
        return self.layout

    @property
    def length(self) -> int:
        return 0  # there is room, as the feed knows


def _step(run: Run, memory: Memory | None, tokens_B1: Tensor, here: Layout, keys: Layout, column: Tensor,
          layers: list[State | None], cross: list[State | None]) -> Tensor:
    state: Any = _StaticState(layers, cross, memory, keys, column)
    return run(memory, tokens_B1, Context(here), state, _last)


def _last(hidden_B1D: Tensor, head: Head) -> Tensor:
    return head(hidden_B1D)[:, 0]
