"""Beam search: finds texts that are likely as a whole, by keeping several at each step. Both assemblies use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miniformer.kernel.errors import UserError

from .arguments import checked_count
from .loop import Feed, Finish, wide
from .sampling import Sampling, Text

MOST = 10_000
"""The most beams: each is a row of the model's batch, with a state of its own."""


@dataclass(frozen=True, slots=True)
class Beams:
    """The settings of a beam search.

    A text of n tokens, its end token included, has the score (sum of their log-probabilities) / n ** `length_penalty`.

    Attributes:
        width: the number of texts that are kept at each step, up to `MOST`; 1 is greedy.
        length_penalty: 0 compares sums, which favours short texts; 1 compares means; more favours long texts.
        early_stop: when to stop once `width` texts have ended. `True`: at once. `False`: when no other text is likely to be
            better, judged by the scores that the running texts have now. `"never"`: when no other text can be better.
        groups: the width is split into this many groups, which search separately. Each is kept from the tokens that the groups
            before it took in the same step (Vijayakumar 2016, arXiv:1610.02424).
        diversity: what a token loses for each group that took it, in nats, when tokens are chosen; scores do not contain it.

    Raises:
        UserError: a setting is out of range.
    """

    width: int = 4
    length_penalty: float = 1.0
    early_stop: bool | Literal["never"] = False
    groups: int = 1
    diversity: float = 0.5

    def __post_init__(self) -> None:
        for name in ("width", "groups"):
            checked_count(f"beams: {name}", getattr(self, name))
        for name, fits, expected in (
                ("width", self.width >= 1, "at least 1"), ("width", self.width <= MOST, f"at most {MOST:,}"),
                ("length_penalty", math.isfinite(self.length_penalty), "a number"),
                ("early_stop", self.early_stop in (True, False, "never"), "True, False or 'never'"),
                ("groups", self.groups >= 1 and self.width % self.groups == 0, f"a divisor of width {self.width}"),
                ("diversity", 0 <= self.diversity < math.inf, "not negative")):
            if not fits:
                raise UserError(f"beams: {name}: expected {expected}; found {getattr(self, name)!r}")


@dataclass(slots=True)
class Hypothesis(Text):
    """A text of a beam search.

    Attributes:
        total: the sum of the log-probabilities of `new`.
        logprobs: the log-probability of each new token.
        row: its row in the feed while it is running.
        finish: why it ended; None: it has not.
        score: its score once it has ended; see `Beams`.
    """

    total: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    row: int = 0
    finish: Finish | None = None
    score: float = -math.inf


@dataclass(slots=True)
class _Group:
    """One search: the texts that are running, best first, and the best that have ended."""

    beams: Beams
    limit: int
    ending: Callable[[Text], Finish | None]
    running: list[Hypothesis]
    wanted: int = 1
    ended: list[Hypothesis] = field(default_factory=list)

    @property
    def width(self) -> int:
        """The number of texts that it keeps."""
        return self.beams.width // self.beams.groups

    def advance(self, logprobs: Sequence[Tensor], taken: Sequence[int]) -> list[int]:
        """Extend the running texts by a token; return the tokens that were taken.

        Args:
            logprobs: `[V]` for each running text, of its next token.
            taken: tokens that other groups took in this step.
        """
        totals = torch.stack([text.total + values.double() for text, values in zip(self.running, logprobs, strict=True)])
        V, merit = totals.shape[1], totals.clone()
        for token in taken:
            merit[:, token] -= self.beams.diversity
        running: list[Hypothesis] = []
        ended: list[Hypothesis] = []
        # twice the width, so that enough are left to run even if `width` of them end
        best = merit.flatten().topk(min(2 * self.width, merit.numel())).indices.tolist()
        for rank, place in enumerate(best):
            parent, token = divmod(place, V)
            if math.isinf(total := float(totals[parent, token])):  # a forbidden token
                continue
            text = self._extended(self.running[parent], token, total, float(logprobs[parent][token]))
            if text.finish is None:
                running += [text] if len(running) < self.width else []
            elif rank < self.width:  # an end that is not among the best of its step is dropped
                ended.append(text)
        self.ended = sorted(self.ended + ended, key=lambda text: -text.score)[:self.width]
        is_full = len(self.ended) == self.width
        self.running = [] if running and (self._has_stopped(running) or (is_full and self._is_done(running))) else running
        return [text.new[-1] for text in ended + running]

    def _extended(self, parent: Hypothesis, token: int, total: float, logprob: float) -> Hypothesis:
        """The text `parent` with one token more, and a score if that ends it."""
        text = Hypothesis(parent.prompt, [*parent.new, token], total, [*parent.logprobs, logprob], parent.row)
        text.finish = self.ending(text) or ("length" if len(text.new) >= self.limit else None)
        if text.finish is not None:
            text.score = self._score(text)
        return text

    def _score(self, text: Hypothesis) -> float:
        """The score that a text would have if it ended here."""
        return text.total / len(text.new) ** self.beams.length_penalty

    def _has_stopped(self, running: Sequence[Hypothesis]) -> bool:
        """Whether the best text ends at a stop string, and as many have ended as are wanted, none worse than any that runs."""
        if self.beams.early_stop == "never" or len(self.ended) < self.wanted or self.ended[0].finish != "stop":
            return False
        return max(map(self._score, running)) <= self.ended[self.wanted - 1].score

    def _is_done(self, running: Sequence[Hypothesis]) -> bool:
        """Whether no running text is going to be better than those that have ended."""
        beams = self.beams
        if beams.early_stop is True:
            return True
        longest = beams.early_stop == "never" and beams.length_penalty > 0  # a sum only falls, so length alone can help
        length = self.limit if longest else len(running[0].new)
        return max(text.total for text in running) / length ** beams.length_penalty <= self.ended[-1].score


def search(feed: Feed, limits: Sequence[int], beams: Beams, sampling: Sampling,
           ending: Callable[[Text], Finish | None], n_best: int = 1) -> list[list[Hypothesis]]:
    """Up to `beams.width` texts for each row of `feed`, best first.

    Args:
        feed: the model with its prompts.
        limits: the most new tokens for each row.
        beams: how to search.
        sampling: its edits change the logits; nothing is drawn.
        ending: called with a text; returns why it ends with its last token, or None.
        n_best: the fewest texts to find before one that ends with `stop`, if it is the best, ends the search.

    Raises:
        UserError, RunError: see `Sampling.edited`.
    """
    searches = _start(feed, limits, beams, ending, math.ceil(max(1, n_best) / beams.groups))
    tokens = feed.start
    while running := [text for groups in searches for group in groups for text in group.running]:
        if running[0].new:
            feed.keep([text.row for text in running])
            tokens = feed.start.new_tensor([text.new[-1:] for text in running])
            for row, text in enumerate(running):
                text.row = row
        logits_BV = wide(feed(tokens)).cpu()
        for groups in searches:
            taken: list[int] = []
            for group in groups:
                if group.running:
                    taken += group.advance(_log_probabilities(group.running, logits_BV, sampling), taken)
    results = []
    for groups in searches:
        ended = [text for group in groups for text in group.ended]
        results.append(sorted(ended, key=lambda text: -text.score))
    return results


def _start(feed: Feed, limits: Sequence[int], beams: Beams, ending: Callable[[Text], Finish | None],
           wanted: int) -> list[list[_Group]]:
    """The groups of each row, which start with its prompt."""
    searches = []
    for row, (tokens, real, limit) in enumerate(zip(feed.start, feed.start_layout.real, limits, strict=True)):
        prompt = tokens[real].tolist()
        groups = []
        for _ in range(beams.groups):
            groups.append(_Group(beams, limit, ending, [Hypothesis(prompt, row=row)] if limit else [], wanted))
        searches.append(groups)
    return searches


def _log_probabilities(texts: Sequence[Hypothesis], logits_BV: Tensor, sampling: Sampling) -> list[Tensor]:
    """Log-probabilities `[V]` of each text's next token.

    A text that no token may continue gets -inf for all; where that is true of every text, the error is raised.
    """
    logprobs: list[Tensor] = []
    stuck: UserError | None = None
    for text in texts:
        try:
            logprobs.append(sampling.edited(logits_BV[text.row], text).log_softmax(dim=-1))
        except UserError as error:
            stuck = error
            logprobs.append(torch.full_like(logits_BV[text.row], -math.inf))
    if stuck is not None and all(bool(torch.isinf(values).all()) for values in logprobs):
        raise stuck
    return logprobs
