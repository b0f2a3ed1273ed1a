"""From logits to tokens: how the next token is chosen, and the loop that feeds it back. Both assemblies decode with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miniformer.kernel.context import Context
from miniformer.kernel.errors import UserError
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout

from .state import DecodingState

Run = Callable[[Tensor, Context, DecodingState | None, Callable[[Tensor, Head], Tensor]], Tensor]
"""A causal model: from tokens `[B, T]`, their context, a state and a readout to what the readout returns."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from logits.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only so many of the likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together have this probability (Holtzman 2020, arXiv:1904.09751).
        repetition_penalty: a token that was seen has its logit divided by it, or, where that is negative, multiplied
            (Keskar 2019, arXiv:1909.05858); 1: none.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 <= self.top_p <= 1 and self.repetition_penalty > 0):
            raise UserError("temperature and top_k are not negative and top_p is from 0 to 1, and repetition_penalty is "
                            f"above 0; found {self.temperature}, {self.top_k}, {self.top_p}, {self.repetition_penalty}")

    def __call__(self, logits: Tensor, seen: Sequence[int], generator: torch.Generator | None) -> int:
        """A token from logits `[V]`, after the tokens `seen`."""
        if self.repetition_penalty != 1:
            index = torch.tensor(sorted(set(seen)), dtype=torch.long)
            again = logits[index]
            logits = logits.index_put((index,), torch.where(again > 0, again / self.repetition_penalty,
                                                            again * self.repetition_penalty))
        return choose(logits, self.temperature, self.top_k, self.top_p, generator)


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> int:
    """A token from logits `[V]`: the likeliest, or a draw from those that are kept."""
    if temperature == 0:
        return int(logits.argmax())
    logits = (logits - logits.max()).double() / temperature  # at most 0, so that no small temperature overflows
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        beyond[0] = False  # the first is always kept
        probabilities[order[beyond]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


class Feed:
    """Feeds a causal model piece by piece: through its state, or without one, everything again each time.

    Args:
        run: the model.
        start: `[B, T]`, the tokens that come first.
        layout: where they sit, one document in each row, padded on either side.
        state: what the model remembers; None: it keeps no state.
    """

    def __init__(self, run: Run, start: Tensor, layout: Layout, state: DecodingState | None) -> None:
        self.run, self.start, self.state = run, start, state
        self.tokens, self.layout = start[:, :0], layout

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[B, V]` for what follows these tokens `[B, T]`, which follow those before."""
        layout = self.layout
        if self.state is None:
            tokens = self.tokens = torch.cat([self.tokens, tokens], dim=1)
        rows, last = torch.arange(tokens.shape[0], device=tokens.device), layout.last()

        def readout(hidden: Tensor, head: Head) -> Tensor:
            return head(hidden[rows, last][:, None])[:, 0]  # [B, D] -> [B, 1, D] -> [B, V]

        logits = self.run(tokens, Context(layout), self.state, readout)
        if self.state is None:
            self.layout = layout.then(layout.following())
        else:
            assert self.state.layout is not None
            self.layout = self.state.layout.following()
        return logits


def decode(feed: Feed, max_new_tokens: int, sampling: Sampling, *, eos_id: int | None = None,
           seed: int | None = None) -> Iterator[list[int]]:
    """The tokens that follow in each of B rows, step by step, until every row has had its `eos_id`.

    A row that has ended gets `eos_id` again. Rows draw by themselves, row b with seed + b, so that no row's text hangs on
    the others.

    Raises:
        UserError: `max_new_tokens` is negative.
    """
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens: not negative; found {max_new_tokens}")
    unseen, ended = feed.start, [False] * len(feed.start)
    seen = [row[real].tolist() for row, real in zip(feed.start, feed.layout.real, strict=True)]
    draws = [None if seed is None else torch.Generator().manual_seed(seed + b) for b in range(len(seen))]
    for _ in range(max_new_tokens):
        logits = feed(unseen).float().cpu()
        tokens = [eos_id if done and eos_id is not None else sampling(row, before, draw)
                  for row, before, draw, done in zip(logits, seen, draws, ended, strict=True)]
        yield tokens
        for before, token in zip(seen, tokens, strict=True):
            before.append(token)
        ended = [done or token == eos_id for done, token in zip(ended, tokens, strict=True)]
        if all(ended):
            return
        unseen = feed.start.new_tensor(tokens)[:, None]
