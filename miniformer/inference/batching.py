"""Continuous batching: prompts wait, and join those that are being written after as soon as others have ended."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from miniformer.decoding.loop import Feed, Row, start_rows
from miniformer.model.assembly import BlockAssembly

AHEAD = 8
"""Batches of prompts that are looked at together, so that those of like length start together."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and how many new ones there is room for, up to what was asked for."""

    text: str
    ids: list[int]
    room: int


class Queue:
    """Prompts in their order; called with the rows that go on, it gives those that join them (see `decode`).

    Args:
        prompts: taken as there is room, some ahead.
        size: at most so many rows at a time.
        model: that they are for.
        start: makes it ready to go on from some of them.
        seed: of the draws after each prompt.
    """

    def __init__(self, prompts: Iterator[Prompt], size: int, model: BlockAssembly, start: Callable[[Sequence[Prompt]], Feed],
                 seed: int | None = None) -> None:
        self.prompts, self.size, self.model, self.start, self.seed = enumerate(prompts), size, model, start, seed
        self.place_of: dict[int, tuple[int, Prompt]] = {}
        self._waiting: list[tuple[int, Prompt]] = []
        self._can_join = True

    def __call__(self, running: Sequence[Row]) -> tuple[Feed, list[Row]] | None:
        free = self.size - len(running)
        if running and (free < max(1, self.size // 4) or not self._can_join):  # a join costs a copy, so some wait for others
            return None
        if not self._waiting:  # all that were looked at are done or running, so that none waits for ever
            some = itertools.islice(self.prompts, AHEAD * self.size)
            self._waiting = sorted(some, key=lambda item: len(item[1].ids))
        joining: list[tuple[int, Prompt]] = []
        for item in self._waiting[:free]:
            if not self._fits(running, [prompt for _, prompt in [*joining, item]]):
                break
            joining.append(item)
        if not joining:
            return None
        self._waiting = self._waiting[len(joining):]
        feed = self.start([prompt for _, prompt in joining])
        self._can_join = feed.can_join
        rows = start_rows(feed, [prompt.room for _, prompt in joining], [self.seed] * len(joining))
        self.place_of.update(zip(map(id, rows), joining, strict=True))
        return feed, rows

    def _fits(self, running: Sequence[Row], joining: Sequence[Prompt]) -> bool:
        """Whether the longest text, and after it as many tokens as any may still get, fit into `max_seq_len` columns."""
        if self.model.endless:
            return True
        read = [len(row.prompt) + len(row.new) - 1 for row in running]
        read += [1 if self.model.has_source else len(prompt.ids) for prompt in joining]
        left = [row.limit - len(row.new) for row in running] + [prompt.room - 1 for prompt in joining]
        return max(read) + max(left) <= self.model.config.max_seq_len
