"""Steps of one token as one compiled graph: whatever changes from step to step is written into tensors that stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.kernel.state import State

from .loop import Feed, Run
from .state import ModelState

Step = Callable[..., Callable[[], Tensor]]
"""Given tensors that are written into, and all else that stays: what runs a step, again and again."""

OPTIONS: dict[str, Any] = {"size_asserts": False, "cpp.enable_floating_point_contract_flag": "fast"}
"""Of inductor: shapes, which stay, are not checked at each call, and a product and a sum may be one instruction."""
GRAPHS = 64
"""Graphs of a step that may be made: for one row and for several, for each dtype, for weights that are trained or not."""
COLUMNS = 128
"""A step attends to a multiple of this many columns: the smallest with a free one."""


def compiled_step() -> Step:
    """A step that is compiled when it first runs with one row, and when it first runs with more.

    After its first run the graph is called directly, with the same tensors: what Dynamo does for a call, guards included, takes
    as long as a layer of a small model. On a GPU the graph is captured as a CUDA graph, too.
    """
    latest = threading.local()  # several threads may run steps of one engine

    def made_of(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        outputs: Any = graph.graph.output_node().args[0]
        made: Any = compile_fx(graph, inputs, config_patches=OPTIONS)

        def call(*given: Any) -> Any:
            found = made(*given)
            if len(outputs) == 1:  # Dynamo puts others into attributes, after each call
                latest.call = partial(made, *given)
            return found

        return call

    # Dynamo keeps graphs with a function's code, few of them; this code goes with its step
    own = FunctionType(_step.__code__.replace(), _step.__globals__, _step.__name__)
    compiled = torch.compile(own, fullgraph=True, dynamic=True, backend=made_of)

    def begin(*given: Any) -> Callable[[], Tensor]:
        again: Callable[[], Sequence[Tensor]] | None = None

        def step() -> Tensor:
            nonlocal again
            if again is not None:
                return again()[0]
            latest.call = None
            with torch._dynamo.config.patch(recompile_limit=GRAPHS):
                logits_BV = compiled(*given)
            again = latest.call
            if again is not None and logits_BV.is_cuda:
                again = _captured(again)
            return logits_BV

        return step

    return begin


def _captured(step: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The same as a CUDA graph: one launch a step, where the launches of its kernels would take longer than they run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        (logits_BV, *_) = step()

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return [logits_BV.clone()]  # the next step writes into it

    return replay


class StaticFeed(Feed):
    """A feed that reads prompts as any does, and after them runs a compiled step for each token.

    Rows that ended keep their place, unseen, until a step needs more columns.

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
            _static(feed.state, torch.zeros(1, dtype=torch.long, device=feed.start.device), 0)

    def __call__(self, tokens: Tensor) -> Tensor:
        state = self.state
        if state is None or state.layout is None or tokens.shape[1] > 1:
            return super().__call__(tokens)
        if self._rows is None or state.length == self._keys.shape[1]:
            self._begin(state)
        rows = self._rows
        assert rows is not None
        if len(rows) == len(self._latest):
            self._latest.copy_(tokens)
        else:
            self._latest[rows] = tokens
        logits_BV = self._run()
        for layer in state.layers:
            if layer is not None:
                layer.advance_static()
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

    def _begin(self, state: ModelState) -> None:
        """Put all that the next steps need into tensors whose shapes stay."""
        if self._rows is not None and 1 < len(self._rows) < len(self.start):  # for one row another graph would have to be made
            super().keep(self._rows)
            self._rows = None
        layout, B, device = state.layout, len(self.start), self.start.device
        assert layout is not None
        if self._rows is None:
            self._rows, self._latest = list(range(B)), self.start.new_zeros(B, 1)
        column = torch.tensor([state.length], device=device)
        columns = min(state.capacity, COLUMNS * (state.length // COLUMNS + 1))
        positions, documents = (torch.zeros(B, columns, dtype=torch.long, device=device) for _ in range(2))
        positions[:, :state.length], documents[:, :state.length] = layout.positions, layout.documents
        self._keys = Layout(positions, documents, aligned=False)
        following = layout.next_position()
        here = replace(self._keys, positions=following.positions.clone(), documents=following.documents.clone())
        layers = _static(state, column, columns)
        self._run = self.step(self.run, state.memory, self._latest, here, self._keys, column, *layers)


def _static(state: ModelState, column: Tensor, columns: int) -> tuple[list[State | None], list[State | None]]:
    """The states of the layers as a step has them, and of the cross-attentions, if there are any."""
    cross: list[State | None] = getattr(state, "cross", [])
    layers, others = ([layer and layer.as_static(column, columns) for layer in some] for some in (state.layers, cross))
    return layers, others


class _StaticState(ModelState):
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
    logits_BV = run(memory, tokens_B1, Context(here), state, _last)
    column.add_(1)
    here.positions.add_(1)
    return logits_BV


def _last(hidden_B1D: Tensor, head: Head) -> Tensor:
    return head(hidden_B1D)[:, 0]
