"""Decoding steps of one token as one compiled graph. What changes from step to step is written into tensors that stay."""

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
from miniformer.ops.torch_private import compile_graph, graph_limit

from .loop import Feed, ModelCall
from .state import ModelState

Step = Callable[..., Callable[[], Tensor]]
"""Given the tensors that steps write into, and all else that stays: a function that runs one step each time it is called."""

INDUCTOR_OPTIONS: dict[str, Any] = {"size_asserts": False, "cpp.enable_floating_point_contract_flag": "fast"}
"""Shapes stay, so they need no check at each call; and a product and a sum may be one instruction."""
GRAPHS = 64
"""The most graphs of one step: for one row and for several, for each dtype, for weights that are trained or not."""
COLUMNS = 128
"""A step attends to a multiple of this many columns: the smallest that has a free one."""


def compiled_step() -> Step:
    """A step that is compiled when it first runs with one row, and again when it first runs with several.

    After its first run the graph is called directly, with the same tensors. What Dynamo does for a call, guards included, takes
    as long as a layer of a small model. On a GPU the graph is also captured as a CUDA graph.
    """
    latest = threading.local()  # several threads may run steps of one engine

    def remembering_backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Compile a graph so that its latest call can be repeated without Dynamo."""
        outputs: Any = graph.graph.output_node().args[0]
        run_graph = compile_graph(graph, inputs, INDUCTOR_OPTIONS)

        def call(*tensors: Any) -> Any:
            results = run_graph(*tensors)
            if len(outputs) == 1:  # Dynamo itself puts any other output into an attribute after each call
                latest.call = partial(run_graph, *tensors)
            return results

        return call

    # Dynamo keeps the graphs of a function with its code, and only few of them. A copy of the code is freed with its step
    own_step = FunctionType(_step.__code__.replace(), _step.__globals__, _step.__name__)
    compiled = torch.compile(own_step, fullgraph=True, dynamic=True, backend=remembering_backend)

    def prepare_step(*arguments: Any) -> Callable[[], Tensor]:
        repeat: Callable[[], Sequence[Tensor]] | None = None

        def step() -> Tensor:
            nonlocal repeat
            if repeat is not None:
                return repeat()[0]
            latest.call = None
            with graph_limit(GRAPHS):
                logits_BV = compiled(*arguments)
            repeat = latest.call
            if repeat is not None and logits_BV.is_cuda:
                repeat = _captured(repeat)
            return logits_BV

        return step

    return prepare_step


def _captured(step: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The step as a CUDA graph: one launch, where the launches of its kernels would take longer than the kernels."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        (logits_BV, *_) = step()

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return [logits_BV.clone()]  # the next step overwrites the original

    return replay


class StaticFeed(Feed):
    """A feed that reads prompts as any does, and then runs a compiled step for each token.

    Rows whose text has ended keep their place, unseen, until a step needs more columns.

    Args:
        feed: the feed to take over, before anything was fed.
        step: see `compiled_step`.

    Raises:
        StateError: a state changes its shapes from step to step.
    """

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed.call_model, feed.start, feed.start_layout, feed.state, feed._memory)
        self.step = step
        self._rows: list[int] | None = None  # the rows that are still written; None: no step was prepared
        if feed.state is not None:
            _static(feed.state, torch.zeros(1, dtype=torch.long, device=feed.start.device), 0)

    def __call__(self, tokens: Tensor) -> Tensor:
        state = self.state
        if state is None or state.layout is None or tokens.shape[1] > 1:
            return super().__call__(tokens)
        if self._rows is None or state.length == self._keys.shape[1]:
            self._prepare(state)
        rows = self._rows
        assert rows is not None
        if len(rows) == len(self._latest):
            self._latest.copy_(tokens)
        else:
            self._latest[rows] = tokens
        logits_BV = self._run_step()
        for layer in state.layers:
            if layer is not None:
                layer.advance_static()
        state.layout = self._keys.columns(state.length + 1)
        return logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]

    def keep(self, index: Sequence[int]) -> None:
        if self._rows is None or self.state is None:
            super().keep(index)
            return
        rows = [self._rows[i] for i in index]
        if rows == sorted(set(rows)):
            self._rows = rows
        else:  # rows are repeated or reordered, as in beam search
            super().keep(rows)
            self._rows = None

    @property
    def can_join(self) -> bool:
        return False

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._rows = None

    def _prepare(self, state: ModelState) -> None:
        """Put everything that the next steps need into tensors whose shapes stay."""
        if self._rows is not None and 1 < len(self._rows) < len(self.start):  # a single row would need another graph
            super().keep(self._rows)
            self._rows = None
        layout, B, device = state.layout, len(self.start), self.start.device
        assert layout is not None
        if self._rows is None:
            self._rows, self._latest = list(range(B)), self.start.new_zeros(B, 1)
        state.make_room(min(state.limit, state.length + 1))
        column = torch.tensor([state.length], device=device)
        columns = min(state.capacity, COLUMNS * (state.length // COLUMNS + 1))
        positions = torch.zeros(B, columns, dtype=torch.long, device=device)
        documents = torch.zeros_like(positions)  # 0 is padding, so that columns not filled yet are seen by no token
        positions[:, :state.length], documents[:, :state.length] = layout.positions, layout.documents
        self._keys = Layout(positions, documents, aligned=False)
        following = layout.next_position()
        here = replace(self._keys, positions=following.positions.clone(), documents=following.documents.clone())
        layers = _static(state, column, columns)
        self._run_step = self.step(self.call_model, state.memory, self._latest, here, self._keys, column, *layers)


def _static(state: ModelState, column: Tensor, columns: int) -> tuple[list[State | None], list[State | None]]:
    """The states of the layers and of their cross-attentions (none in a decoder alone), as a compiled step has them."""
    def as_static(states: Sequence[State | None]) -> list[State | None]:
        return [None if layer is None else layer.as_static(column, columns) for layer in states]

    return as_static(state.layers), as_static(getattr(state, "cross", []))


class _StaticState(ModelState):
    """The state of a model in a compiled step; its layout is of all columns, filled or not."""

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
        return 0  # the feed has checked that there is room


def _step(call_model: ModelCall, memory: Memory | None, tokens_B1: Tensor, here: Layout, keys: Layout, column: Tensor,
          layers: list[State | None], cross: list[State | None]) -> Tensor:
    """One step. It advances `column` and the positions in `here` in place, ready for the next."""
    state: Any = _StaticState(layers, cross, memory, keys, column)
    logits_BV = call_model(memory, tokens_B1, Context(here), state, _last)
    column.add_(1)
    here.positions.add_(1)
    return logits_BV


def _last(hidden_B1D: Tensor, head: Head) -> Tensor:
    return head(hidden_B1D)[:, 0]
