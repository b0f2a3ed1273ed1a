"""The decoding loop: a model reads tokens piece by piece, and one token is chosen for each text. Both assemblies use it."""

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

from .memory import rows_of, stack_memories
from .sampling import Sampling, Text
from .state import ModelState

Readout = Callable[[Tensor, Head], Tensor]
ModelCall = Callable[[Memory | None, Tensor, Context, ModelState | None, Readout], Tensor]
"""A causal model: called with a memory, tokens `[B, T]`, their context, a state and a readout; returns the readout's result."""
Finish = Literal["eos", "length", "stop"]

PREFILL = 512
"""Columns of a prompt that go through the model at once, so that activations stay bounded however long the prompt is."""


Arrivals = Callable[[Sequence["RunningText"]], "tuple[Feed, list[RunningText]] | None"]
"""Called with the texts that are being written; returns texts that join them, with the feed of these, or None."""


class Feed:
    """Feeds tokens to a causal model piece by piece. With a state each token is read once; without, all are read every time.

    Args:
        call_model: the model.
        start: `[B, T]`, the tokens that come first.
        layout: where they sit: one document in each row, padded on either side.
        state: what the model remembers; None: it keeps no state.
        memory: what a decoder beside an encoder looks at.
    """

    def __init__(self, call_model: ModelCall, start: Tensor, layout: Layout, state: ModelState | None,
                 memory: Memory | None = None) -> None:
        self.call_model, self.start, self.start_layout, self.state = call_model, start, layout, state
        self._memory = memory
        self._tokens = start[:, :0]
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout | None:
        """Where all tokens so far sit; None before the first."""
        return self._layout if self.state is None else self.state.layout

    @property
    def length(self) -> int:
        """Columns fed so far."""
        return 0 if self.layout is None else self.layout.shape[1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Feed the next tokens `[B, T]`; return logits `[B, V]` for what follows them. The first call feeds `start`."""
        layout = self._next_layout(tokens.shape[1])
        if tokens.shape[1] == 1:
            return self._read(tokens, layout, lambda hidden, head: head(hidden[:, -1:])[:, 0])
        return self._prefill(tokens, layout)

    def _prefill(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Feed many columns in pieces; the head is asked once, for the last real token of each row."""
        B, T = tokens.shape
        rows_B, last_B = torch.arange(B, device=tokens.device), layout.last()
        size = T if self.state is None else PREFILL  # without a state each piece would read all those before it again
        result = torch.empty(0, device=tokens.device)
        for start in range(0, T, size):
            stop = min(start + size, T)

            def readout(hidden: Tensor, head: Head, before: Tensor = result, n: int = stop - start,
                        at_B: Tensor = last_B - start, is_last: bool = stop == T) -> Tensor:
                end_BD = hidden[:, -n:][rows_B, at_B.clamp(0, n - 1)]  # of a row that ends in another piece it is not used
                if len(before):
                    end_BD = torch.where(at_B[:, None] >= 0, end_BD, before)
                return head(end_BD[:, None])[:, 0] if is_last else end_BD

            result = self._read(tokens[:, start:stop], _columns(layout, start, stop), readout)
        return result

    def logits_after_each(self, tokens: Tensor) -> Tensor:
        """Feed the next tokens `[B, T]`; return logits `[B, T, V]` for what follows each of them."""
        T = tokens.shape[1]
        return self._read(tokens, self._next_layout(T), lambda hidden, head: head(hidden[:, -T:]))

    def keep(self, index: Sequence[int]) -> None:
        """Continue with the rows that `index` names, in its order."""
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
        """Whether the rows of another feed can join."""
        return self.state is None or self.state.can_join

    def join(self, other: Feed, steps: int) -> None:
        """Append the rows of `other`, with room for `steps` more columns. Both feeds have read something.

        Columns that would be padding in every row are dropped.
        """
        assert self.layout is not None and other.layout is not None
        columns = max(layout.shape[1] - int(layout.first().min()) for layout in (self.layout, other.layout))
        start_columns = max(self.start.shape[1], other.start.shape[1])
        self.start = torch.cat([latest(feed.start, 1, start_columns) for feed in (self, other)])
        self.start_layout = self.start_layout.stack_rows(other.start_layout, start_columns)
        if self.state is not None and other.state is not None:
            self.state.join(other.state, columns, columns + steps)
            return
        self._tokens = torch.cat([latest(feed._tokens, 1, columns) for feed in (self, other)])
        self._layout = self.layout.stack_rows(other.layout, columns)
        if self._memory is not None and other._memory is not None:
            self._memory = stack_memories(self._memory, other._memory)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` columns.

        Raises:
            StateError: a state cannot go back that far.
        """
        if self.state is not None:
            self.state.truncate(length)
        elif self._layout is not None:
            self._tokens, self._layout = self._tokens[:, :length], self._layout.columns(length)

    def _next_layout(self, length: int) -> Layout:
        """Where the next `length` columns sit."""
        if self.layout is None:
            return self.start_layout
        following = self.layout.next_position()
        if length == 1:
            return following
        offsets = torch.arange(length, device=following.positions.device)
        return replace(following, positions=following.positions + offsets, documents=following.documents.expand(-1, length))

    def _read(self, tokens: Tensor, layout: Layout, readout: Readout) -> Tensor:
        if self.state is None:
            self._tokens = tokens = torch.cat([self._tokens, tokens], dim=1)
            self._layout = layout = layout if self._layout is None else self._layout.append_columns(layout)
        memory = self._memory if self.state is None else self.state.memory
        return self.call_model(memory, tokens, Context(layout), self.state, readout)


def _columns(layout: Layout, start: int, stop: int) -> Layout:
    """The columns of a layout from `start` to `stop`."""
    if (start, stop) == (0, layout.shape[1]):
        return layout
    return replace(layout, positions=layout.positions[:, start:stop], documents=layout.documents[:, start:stop],
                   aligned=layout.aligned and start == 0)


@dataclass(slots=True)
class RunningText(Text):
    """A text that is being written, in one row of a feed.

    Attributes:
        limit: the most new tokens that it may get.
        draw: the generator of its draws; None: torch's own.
        logprobs: log-probability of each new token by the model, before any edit or filter.
        finish: why it ended: `eos`, the end token, which is then the last of `new`; `length`, at its limit; or `stop`, set by
            whoever reads it. None: it has not ended.
    """

    limit: int = 0
    draw: torch.Generator | None = None
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None


def start_texts(feed: Feed, limits: Sequence[int], seeds: Sequence[int | None]) -> list[RunningText]:
    """A text to write for each row of `feed`, which holds its prompt.

    Raises:
        UserError: a limit is negative.
    """
    if min(limits) < 0:
        raise UserError(f"max_new_tokens: not negative; found {min(limits)}")
    texts = []
    for tokens, real, limit, seed in zip(feed.start, feed.start_layout.real, limits, seeds, strict=True):
        draw = None if seed is None else torch.Generator().manual_seed(seed)
        texts.append(RunningText(tokens[real].tolist(), limit=limit, draw=draw))
    return texts


def decode(feed: Feed, texts: Sequence[RunningText], sampling: Sampling, eos_id: int | None = None, *,
           arrivals: Arrivals | None = None) -> Iterator[list[RunningText]]:
    """Write texts step by step; each step yields the texts that got a token.

    Each text has draws and edits of its own, so that none depends on the others. A text that has ended leaves the batch, and
    others may take its place.

    Args:
        feed: the model with the prompts of `texts`, a row for each.
        texts: the texts to write.
        sampling: how tokens are chosen.
        eos_id: the token that ends a text.
        arrivals: asked before each step whether more texts join; see `Arrivals`.

    Raises:
        UserError, RunError: see `Sampling.edited`.
    """
    running: list[RunningText] = []
    arriving: tuple[Feed, list[RunningText]] | None = (feed, list(texts))
    while running or arriving is not None:
        if arriving is None:
            yield _step(feed, running, feed.start.new_tensor([text.new[-1:] for text in running]), sampling, eos_id)
        else:
            new_feed, new_texts = arriving
            for text in new_texts:
                text.finish = "length" if text.limit == 0 else None
            if new_texts := _unfinished(new_feed, new_texts):
                # prompts are read by themselves: they have many columns, and running texts need one column a step
                yield _step(new_feed, new_texts, new_feed.start, sampling, eos_id)
                new_texts = _unfinished(new_feed, new_texts)
            if running and new_texts:
                feed.join(new_feed, max(text.limit - len(text.new) for text in [*running, *new_texts]))
            elif new_texts:
                feed = new_feed
            running = [*running, *new_texts]
        running = _unfinished(feed, running)
        arriving = None if arrivals is None else arrivals(running)


def _unfinished(feed: Feed, texts: list[RunningText]) -> list[RunningText]:
    """The texts that have not ended; `feed` keeps their rows only, or stays as it is where all have ended."""
    index = [i for i, text in enumerate(texts) if text.finish is None]
    if index:
        feed.keep(index)
    return [texts[i] for i in index]


def _step(feed: Feed, texts: list[RunningText], tokens: Tensor, sampling: Sampling, eos_id: int | None) -> list[RunningText]:
    """Feed `tokens` `[B, T]`, and append one token to each of the B texts."""
    logits_BV = wide(feed(tokens)).cpu()
    next_ids = sampling.rows(logits_BV, texts, [text.draw for text in texts])
    logprobs_B = logits_BV.log_softmax(dim=-1).gather(1, torch.tensor(next_ids)[:, None])[:, 0]
    for text, token, logprob in zip(texts, next_ids, logprobs_B.tolist(), strict=True):
        text.new.append(token)
        text.logprobs.append(logprob)
        text.finish = "eos" if token == eos_id else "length" if len(text.new) >= text.limit else None
    return texts


def wide(logits: Tensor) -> Tensor:
    """Logits in at least single precision, so that log-probabilities of half-precision models are exact enough to add."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
