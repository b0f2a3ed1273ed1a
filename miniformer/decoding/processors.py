"""What changes the logits before a token is chosen: edits that look at the text so far, and filters of unlikely tokens.

Each is a processor: a small value that is called with logits `[V]` and the text, and returns changed logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from miniformer.kernel.errors import UserError


@dataclass(slots=True)
class Text:
    """A text as tokens: the prompt (of an encoder-decoder, the start token), and the new tokens written after it."""

    prompt: Sequence[int]
    new: list[int] = field(default_factory=list)


Processor = Callable[[Tensor, Text], Tensor]
"""From logits `[V]` for the next token of a text to changed ones, in a new tensor. -inf forbids a token."""


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Makes tokens that are in the text, prompt included, less likely (Keskar 2019, arXiv:1909.05858).

    A positive logit is divided by the penalty; a negative one is multiplied by it.
    """

    penalty: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = torch.tensor(sorted({*text.prompt, *text.new}), dtype=torch.long)
        seen = logits[index]
        return logits.index_put((index,), torch.where(seen > 0, seen / self.penalty, seen * self.penalty))


@dataclass(frozen=True, slots=True)
class CountPenalty:
    """Subtracts `presence` from the logit of each token that was written, and `frequency` once for each time it was.

    The prompt does not count.
    """

    presence: float = 0.0
    frequency: float = 0.0

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        if not text.new:
            return logits
        index, counts = torch.unique(torch.tensor(text.new), return_counts=True)
        return logits.index_add(0, index, (-self.presence - self.frequency * counts).to(logits.dtype))


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """Forbids tokens that would complete a run of `n` tokens that the text already has (Paulus 2017, arXiv:1705.04304)."""

    n: int

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        tokens = [*text.prompt, *text.new]
        start = len(tokens) - self.n + 1
        ending = tokens[max(0, start):]
        banned = []
        for i in range(start):
            if tokens[i:i + self.n - 1] == ending:
                banned.append(tokens[i + self.n - 1])
        return logits if not banned else logits.index_fill(0, torch.tensor(banned), -math.inf)


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Adds to the logits of some tokens, by id; -inf forbids a token."""

    bias: Mapping[int, float]

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = _token_index(self.bias, logits, "logit bias")
        return logits.index_add(0, index, torch.tensor(list(self.bias.values()), dtype=logits.dtype))


@dataclass(frozen=True, slots=True)
class Allowed:
    """Forbids all tokens but those whose ids `callback` returns for the text."""

    callback: Callable[[Text], Iterable[int]]

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = _token_index(self.callback(text), logits, "allowed tokens")
        return torch.full_like(logits, -math.inf).index_copy(0, index, logits[index])


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides the logits by the temperature: below 1 sharpens the distribution, above 1 flattens it."""

    temperature: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        # all are at most 0, and float64 has room, so that no small temperature overflows
        return (logits - logits.max()).double() / self.temperature


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the `k` likeliest tokens, and any as likely as the last of them (Fan 2018, arXiv:1805.04833)."""

    k: int

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        least = logits.topk(min(self.k, len(logits))).values[-1]
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the fewest likeliest tokens whose probabilities add up to `p`, at least one (Holtzman 2020, arXiv:1904.09751)."""

    p: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        ordered, order = logits.softmax(dim=-1).sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= self.p
        beyond[0] = False
        return logits.index_fill(0, order[beyond], -math.inf)


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps the tokens that are at least `p` times as likely as the likeliest (Nguyen 2024, arXiv:2407.01082)."""

    p: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        return logits.masked_fill(logits < logits.max() + math.log(self.p), -math.inf)


def _token_index(ids: Iterable[int], logits: Tensor, what: str) -> Tensor:
    """Token ids as an index of the logits, checked to be in the vocabulary."""
    index = torch.tensor(list(ids), dtype=torch.long)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(logits):
        wrong = next(i for i in index.tolist() if not 0 <= i < len(logits))
        raise UserError(f"{what}: expected ids of the {len(logits)} tokens; found {wrong}")
    return index
