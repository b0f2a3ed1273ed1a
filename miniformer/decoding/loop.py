"""The loop that writes: a model is fed piece by piece, and a token is chosen for each row. Both assemblies decode with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.errors import UserError
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout, latest

from .sampling import Sampling, Text
from .state import ModelState, rows_of, stack_memories

Run = Callable[[Memory | None, Tensor, Context, ModelState | None, Callable[[Tensor, Head], Tensor]], Tensor]
"""A causal model: from a memory, tokens `[B, T]`, their context, a state and a readout to what the readout returns."""
Finish = Literal["eos", "length", "stop"]

PREFILL = 512
"""Columns of a prompt that go through the model at once, so that activations are bounded however long it is."""


Arrivals = Callable[[Sequence["Row"]], "tuple[Feed, list[Row]] | None"]
"""Given the rows that go on: others that join them, with the feed that they are of, or nothing."""


class Feed:
    """Feeds a causal model piece by piece: through its state, or without one, everything again each time.

    Args:
        run: the model.
        start: `[B, T]`, the tokens that come first.
        layout: where they sit, one document in each row, padded on either side.
        state: what the model remembers; None: it keeps no state.
        memory: what the model looks at beside, if it does.
    """

    def __init__(self, run: Run, start: Tensor, layout: Layout, state: ModelState | None,
                 memory: Memory | None = None) -> None:
        self.run, self.start, self.start_layout, self.state, self._memory = run, start, layout, state, memory
        self._tokens = start[:, :0]
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout | None:
        """Where all tokens so far sit; None: nothing was fed."""
        return self._layout if self.state is None else self.state.layout

    @property
    def length(self) -> int:
        """Columns fed so far."""
        return 0 if self.layout is None else self.layout.shape[1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[B, V]` for what follows these tokens `[B, T]`, which follow those before; `start` comes first."""
        (B, T), layout = tokens.shape, self._where(tokens.shape[1])
        if T == 1:
            return self._read(tokens, layout, lambda hidden, head: head(hidden[:, -1:])[:, 0])
        rows, last_B, step = torch.arange(B, device=tokens.device), layout.last(), PREFILL if self.state is not None else T
        found = torch.empty(0, device=tokens.device)
        for begin in range(0, T, step):
            stop, at_B = min(begin + step, T), last_B - begin

            def readout(hidden: Tensor, head: Head, found: Tensor = found, n: int = stop - begin, at_B: Tensor = at_B,
                        ends: bool = stop == T) -> Tensor:
                last_BD = hidden[:, -n:][rows, at_B.clamp(0, n - 1)]  # of rows that end in another piece it is not used
                if len(found):
                    last_BD = torch.where(at_B[:, None] >= 0, last_BD, found)
                return head(last_BD[:, None])[:, 0] if ends else last_BD

            found = self._read(tokens[:, begin:stop], _columns(layout, begin, stop), readout)
        return found

    def every(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, V]` for what follows each of these tokens, which follow those before."""
        T = tokens.shape[1]
        return self._read(tokens, self._where(T), lambda hidden, head: head(hidden[:, -T:]))

    def keep(self, index: Sequence[int]) -> None:
        """Go on with the rows that `index` names, in its order."""
        if list(index) == list(range(len(self.start))):
            return
        rows = torch.tensor(index, dtype=torch.long, device=self.start.device)
        self.start, self.start_layout, self._tokens = self.start[rows], self.start_layout.rows(rows), self._tokens[rows]
        if self.state is not None:
            self.state.reorder(rows)
            return
        self._layout = None if self._layout is None else self._layout.rows(rows)
        self._memory = None if self._memory is None else rows_of(self._memory, rows)

    @property
    def can_join(self) -> bool:
        """Whether rows of another feed can join."""
        return self.state is None or self.state.can_join

    def join(self, other: Feed, steps: int) -> None:
        """Go on with the rows of `other` too, after one's own, with room for `steps` more columns. Both have read something.

        Padding that comes before all of what the rows have read is left out.
        """
        assert self.layout is not None and other.layout is not None
        columns = max(one.shape[1] - int(one.first().min()) for one in (self.layout, other.layout))
        starts = max(self.start.shape[1], other.start.shape[1])
        self.start = torch.cat([latest(one.start, 1, starts) for one in (self, other)])
        self.start_layout = self.start_layout.stack_rows(other.start_layout, starts)
        if self.state is not None and other.state is not None:
            self.state.join(other.state, columns, columns + steps)
            return
        self._tokens = torch.cat([latest(one._tokens, 1, columns) for one in (self, other)])
        self._layout = self.layout.stack_rows(other.layout, columns)
        if self._memory is not None and other._memory is not None:
            self._memory = stack_memories(self._memory, other._memory)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` columns.

        Raises:
            StateError: a state cannot go back.
        """
        if self.state is not None:
            self.state.truncate(length)
        elif self._layout is not None:
            self._tokens, self._layout = self._tokens[:, :length], self._layout.columns(length)

    def _where(self, length: int) -> Layout:
        """The layout of the next columns."""
        if self.layout is None:
            return self.start_layout
        follow = self.layout.next_position()
        if length == 1:
            return follow
        return replace(follow, positions=follow.positions + torch.arange(length, device=follow.positions.device),
                       documents=follow.documents.expand(-1, length))

    def _read(self, tokens: Tensor, layout: Layout, readout: Callable[[Tensor, Head], Tensor]) -> Tensor:
        if self.state is None:
            self._tokens = tokens = torch.cat([self._tokens, tokens], dim=1)
            self._layout = layout = layout if self._layout is None else self._layout.append_columns(layout)
        memory = self._memory if self.state is None else self.state.memory
        return self.run(memory, tokens, Context(layout), self.state, readout)


def _columns(layout: Layout, begin: int, stop: int) -> Layout:
    """Columns `begin` to `stop`."""
    if (begin, stop) == (0, layout.shape[1]):
        return layout
    return replace(layout, positions=layout.positions[:, begin:stop], documents=layout.documents[:, begin:stop],
                   aligned=layout.aligned and begin == 0)


@dataclass(slots=True)
class Row(Text):
    """A text that is being written.

    Attributes:
        limit: at most so many new tokens.
        draw: makes its draws; None: torch's own generator.
        logprobs: log-probability of each new token by the model, before any edit or filter.
        finish: why it ended: its end token, which is the last of `new` then; `limit`; or whoever reads it said `stop`.
    """

    limit: int = 0
    draw: torch.Generator | None = None
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None


def start_rows(feed: Feed, limits: Sequence[int], seeds: Sequence[int | None]) -> list[Row]:
    """The rows that go on what `feed` starts with.

    Raises:
        UserError: a limit is negative.
    """
    if min(limits) < 0:
        raise UserError(f"max_new_tokens: not negative; found {min(limits)}")
    given = [tokens[real].tolist() for tokens, real in zip(feed.start, feed.start_layout.real, strict=True)]
    return [Row(prompt, limit=limit, draw=None if seed is None else torch.Generator().manual_seed(seed))
            for prompt, limit, seed in zip(given, limits, seeds, strict=True)]


def decode(feed: Feed, rows: Sequence[Row], sampling: Sampling, eos_id: int | None = None, *,
           arrivals: Arrivals | None = None) -> Iterator[list[Row]]:
    """Write the texts of `rows`, which are those of `feed`, step by step; each step gives the rows that got a token.

    Rows draw by themselves and are edited by themselves, so that no row's text hangs on the others. One that has ended
    takes no more part, and others may take its place.

    Args:
        feed: the model with its prompts.
        rows: are written.
        sampling: how tokens are chosen.
        eos_id: the token that ends a text.
        arrivals: is asked before each step, with the rows that go on, for more rows and the feed that they are of.

    Raises:
        UserError, RunError: see `Sampling.edited`.
    """
    running: list[Row] = []
    more: tuple[Feed, list[Row]] | None = (feed, list(rows))
    while running or more is not None:
        if more is None:
            yield _step(feed, running, feed.start.new_tensor([row.new[-1:] for row in running]), sampling, eos_id)
        else:
            other, new = more
            for row in new:
                row.finish = "length" if row.limit == 0 else None
            if new := _going(other, new):
                yield _step(other, new, other.start, sampling, eos_id)
                new = _going(other, new)
            if running and new:
                feed.join(other, max(row.limit - len(row.new) for row in [*running, *new]))
            elif new:
                feed = other
            running = [*running, *new]
        running = _going(feed, running)
        more = None if arrivals is None else arrivals(running)


def _going(feed: Feed, rows: list[Row]) -> list[Row]:
    """The rows that have not ended, which `feed` goes on with; nothing if none has."""
    left = [i for i, row in enumerate(rows) if row.finish is None]
    if left:
        feed.keep(left)
    return [rows[i] for i in left]


def _step(feed: Feed, rows: list[Row], tokens: Tensor, sampling: Sampling, eos_id: int | None) -> list[Row]:
    """A token more for each of `rows`, those of `feed`, which is given `tokens`."""
    logits_BV = wide(feed(tokens)).cpu()
    chosen = sampling.rows(logits_BV, rows, [row.draw for row in rows])
    logprobs_B = logits_BV.log_softmax(dim=-1).gather(1, torch.tensor(chosen)[:, None])[:, 0]
    for row, token, logprob in zip(rows, chosen, logprobs_B.tolist(), strict=True):
        row.new.append(token)
        row.logprobs.append(logprob)
        row.finish = "eos" if token == eos_id else "length" if len(row.new) >= row.limit else None
    return rows


def wide(logits: Tensor) -> Tensor:
    """Logits in single precision at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
