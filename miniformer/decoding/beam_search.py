"""Beam search: the likeliest texts as a whole, by keeping several at each step. Both assemblies search with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miniformer.kernel.errors import UserError

from .loop import Feed, Finish, wide
from .sampling import Sampling, Text


@dataclass(frozen=True, slots=True)
class Beams:
    """How texts are searched for.

    A text of n tokens, its end token counted, has the score (sum of their log-probabilities) / n ** `length_penalty`.

    Attributes:
        width: texts that are kept at each step; 1 is greedy.
        length_penalty: 0 compares sums, which favours short texts; 1 means; more favours long ones.
        early_stop: end as soon as `width` texts have ended; `False`: when no other is likely to be better, taking those that
            go on as they are now; `"never"`: when no other can be.
        groups: parts of the width that search by themselves, each kept from the tokens that those before it took in the same
            step (Vijayakumar 2016, arXiv:1610.02424).
        diversity: what a token loses for each of those, in nats, when it is chosen; the score does not know it.

    Raises:
        UserError: a setting is out of range.
    """

    width: int = 4
    length_penalty: float = 1.0
    early_stop: bool | Literal["never"] = False
    groups: int = 1
    diversity: float = 0.5

    def __post_init__(self) -> None:
        for name, fits, expected in (
                ("width", self.width >= 1, "at least 1"), ("length_penalty", math.isfinite(self.length_penalty), "a number"),
                ("early_stop", self.early_stop in (True, False, "never"), "True, False or 'never'"),
                ("groups", self.groups >= 1 and self.width % self.groups == 0, f"a divisor of width {self.width}"),
                ("diversity", 0 <= self.diversity < math.inf, "not negative")):
            if not fits:
                raise UserError(f"beams: {name}: expected {expected}; found {getattr(self, name)!r}")


@dataclass(slots=True)
class Hypothesis(Text):
    """A text that is searched with.

    Attributes:
        total: the sum of the log-probabilities of `new`.
        logprobs: those, one by one.
        row: its row in the feed, while it goes on.
        finish: why it ended.
        score: how good it is, when it has ended.
    """

    total: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    row: int = 0
    finish: Finish | None = None
    score: float = -math.inf


@dataclass(slots=True)
class _Group:
    """One search: those that go on, best first, and the best that have ended."""

    beams: Beams
    limit: int
    ending: Callable[[Text], Finish | None]
    running: list[Hypothesis]
    ended: list[Hypothesis] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Texts that it keeps."""
        return self.beams.width // self.beams.groups

    def advance(self, logprobs: Sequence[Tensor], taken: Sequence[int]) -> list[int]:
        """A step: `logprobs` has those of the next token for each that goes on, `taken` what other groups took.

        Returns:
            The tokens that it took itself.
        """
        totals = torch.stack([one.total + values.double() for one, values in zip(self.running, logprobs, strict=True)])
        V, merit = totals.shape[1], totals.clone()
        for token in taken:
            merit[:, token] -= self.beams.diversity
        going: list[Hypothesis] = []
        ended: list[Hypothesis] = []
        for rank, place in enumerate(merit.flatten().topk(min(2 * self.width, merit.numel())).indices.tolist()):
            parent, token, total = self.running[place // V], place % V, float(totals.flatten()[place])
            if math.isinf(total):  # a forbidden token
                continue
            one = Hypothesis(parent.prompt, [*parent.new, token], total,
                             [*parent.logprobs, float(logprobs[place // V][token])], parent.row)
            one.finish = self.ending(one) or ("length" if len(one.new) >= self.limit else None)
            if one.finish is None:
                going += [one] if len(going) < self.width else []
            elif rank < self.width:
                one.score = total / len(one.new) ** self.beams.length_penalty
                ended.append(one)
        self.ended = sorted(self.ended + ended, key=lambda one: -one.score)[:self.width]
        self.running = [] if len(self.ended) == self.width and going and self._is_done(going) else going
        return [one.new[-1] for one in ended + going]

    def _is_done(self, going: Sequence[Hypothesis]) -> bool:
        """Whether no text that goes on is going to be better than those that have ended."""
        beams = self.beams
        if beams.early_stop is True:
            return True
        longest = beams.early_stop == "never" and beams.length_penalty > 0  # a sum only falls, so length alone can help
        length = self.limit if longest else len(going[0].new)
        return max(one.total for one in going) / length ** beams.length_penalty <= self.ended[-1].score


def search(feed: Feed, limits: Sequence[int], beams: Beams, sampling: Sampling,
           ending: Callable[[Text], Finish | None]) -> list[list[Hypothesis]]:
    """For each row of `feed` the best texts that were found, best first, `beams.width` of them if there are.

    Args:
        feed: the model with its prompts.
        limits: for each row, at most so many new tokens.
        beams: how to search.
        sampling: its edits shape the logits; nothing is drawn.
        ending: whether a text ends with its last token, and why.

    Raises:
        UserError, RunError: see `Sampling.edited`.
    """
    prompts = [tokens[real].tolist() for tokens, real in zip(feed.start, feed.start_layout.real, strict=True)]
    searches = [[_Group(beams, limit, ending, [Hypothesis(prompt, row=row)] if limit else []) for _ in range(beams.groups)]
                for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))]
    tokens = feed.start
    while running := [one for groups in searches for group in groups for one in group.running]:
        if running[0].new:
            feed.keep([one.row for one in running])
            tokens = feed.start.new_tensor([one.new[-1:] for one in running])
            for row, one in enumerate(running):
                one.row = row
        logits_BV = wide(feed(tokens)).cpu()
        for groups in searches:
            taken: list[int] = []
            for group in groups:
                if group.running:
                    taken += group.advance(_log_probabilities(group.running, logits_BV, sampling), taken)
    found = [[one for group in groups for one in group.ended] for groups in searches]
    return [sorted(ended, key=lambda one: -one.score) for ended in found]


def _log_probabilities(texts: Sequence[Hypothesis], logits_BV: Tensor, sampling: Sampling) -> list[Tensor]:
    """Log-probabilities `[V]` of each text's next token; all -inf for a text that no token may continue, unless that is true of
    all (UserError)."""
    found: list[Tensor] = []
    stuck: UserError | None = None
    for one in texts:
        try:
            found.append(sampling.edited(logits_BV[one.row], one).log_softmax(dim=-1))
        except UserError as error:
            stuck = error
            found.append(torch.full_like(logits_BV[one.row], -math.inf))
    if stuck is not None and all(bool(torch.isinf(values).all()) for values in found):
        raise stuck
    return found
