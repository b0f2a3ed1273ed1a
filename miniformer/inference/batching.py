"""Continuous batching: prompts wait in a queue, and join the texts that are being written as soon as others have ended."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from miniformer.decoding.loop import Feed, RunningText, start_texts
from miniformer.model.assembly import BlockAssembly

BATCHES_AHEAD = 8
"""Batches of prompts that are taken together and sorted by length, so that prompts of like lengths start together."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and the most new tokens that it may get."""

    text: str
    ids: list[int]
    room: int


class PromptQueue:
    """Prompts that wait. Called with the texts that are being written, it returns texts that join them (see `decode`).

    Args:
        prompts: taken as there is room, some ahead.
        size: the most texts at a time.
        model: the model that writes.
        start_feed: makes a feed from some prompts.
        seed: of the draws after each prompt.
    """

    def __init__(self, prompts: Iterator[Prompt], size: int, model: BlockAssembly,
                 start_feed: Callable[[Sequence[Prompt]], Feed], seed: int | None = None) -> None:
        self.prompts, self.size, self.model = enumerate(prompts), size, model
        self.start_feed, self.seed = start_feed, seed
        self.place_of: dict[int, tuple[int, Prompt]] = {}
        self._waiting: list[tuple[int, Prompt]] = []
        self._can_join = True

    def __call__(self, running: Sequence[RunningText]) -> tuple[Feed, list[RunningText]] | None:
        free = self.size - len(running)
        # a join copies the states, so it waits until a quarter of the batch is free
        if running and (free < max(1, self.size // 4) or not self._can_join):
            return None
        if not self._waiting:  # only then are more sorted in, so that no long prompt waits for ever
            ahead = itertools.islice(self.prompts, min(BATCHES_AHEAD * self.size, sys.maxsize))
            self._waiting = sorted(ahead, key=lambda place_and_prompt: len(place_and_prompt[1].ids))
        joining: list[tuple[int, Prompt]] = []
        for place, prompt in self._waiting[:free]:
            if not self._fits(running, [*(joined for _, joined in joining), prompt]):
                break
            joining.append((place, prompt))
        if not joining:
            return None
        self._waiting = self._waiting[len(joining):]
        feed = self.start_feed([prompt for _, prompt in joining])
        self._can_join = feed.can_join
        texts = start_texts(feed, [prompt.room for _, prompt in joining], [self.seed] * len(joining))
        self.place_of.update(zip(map(id, texts), joining, strict=True))
        return feed, texts

    def _fits(self, running: Sequence[RunningText], joining: Sequence[Prompt]) -> bool:
        """Whether all texts can be written within `max_seq_len` columns, in which they stand right-aligned."""
        if self.model.endless:
            return True
        read = [len(text.prompt) + len(text.new) - 1 for text in running]
        read += [1 if self.model.has_source else len(prompt.ids) for prompt in joining]
        left = [text.limit - len(text.new) for text in running] + [prompt.room - 1 for prompt in joining]
        return max(read) + max(left) <= self.model.config.max_seq_len
