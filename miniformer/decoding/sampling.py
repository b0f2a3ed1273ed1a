"""How a token is chosen from logits: edits that look at the text so far, filters that leave out unlikely tokens, a draw.

Edits and filters are processors: small values that are called with logits `[V]` and the text, and return changed logits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.errors import RunError, UserError


@dataclass(slots=True)
class Text:
    """A text as tokens: what was given (of an encoder-decoder, the start token), and what was written."""

    prompt: Sequence[int]
    new: list[int] = field(default_factory=list)


Processor = Callable[[Tensor, Text], Tensor]
"""Makes new logits `[V]` of some and of the text that they go on; -inf forbids a token. What it is given stays as it is."""


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Divides the logits of tokens that were seen, or, where one is negative, multiplies it (Keskar 2019, arXiv:1909.05858)."""

    penalty: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = torch.tensor(sorted({*text.prompt, *text.new}), dtype=torch.long)
        again = logits[index]
        return logits.index_put((index,), torch.where(again > 0, again / self.penalty, again * self.penalty))


@dataclass(frozen=True, slots=True)
class CountPenalty:
    """Takes `presence` off the logits of tokens that were written, and `frequency` for each time; the prompt does not count."""

    presence: float = 0.0
    frequency: float = 0.0

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        if not text.new:
            return logits
        index, counts = torch.unique(torch.tensor(text.new), return_counts=True)
        return logits.index_add(0, index, (-self.presence - self.frequency * counts).to(logits.dtype))


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """Forbids to end a run of `n` tokens that is in the text already (Paulus 2017, arXiv:1705.04304)."""

    n: int

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        tokens = [*text.prompt, *text.new]
        start = len(tokens) - self.n + 1
        latest = tokens[max(0, start):]
        banned = [tokens[i + self.n - 1] for i in range(start) if tokens[i:i + self.n - 1] == latest]
        return logits if not banned else logits.index_fill(0, torch.tensor(banned), -math.inf)


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Adds to the logits of some tokens, by id; -inf forbids one."""

    bias: Mapping[int, float]

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = _tokens(self.bias, logits, "logit bias")
        return logits.index_add(0, index, torch.tensor(list(self.bias.values()), dtype=logits.dtype))


@dataclass(frozen=True, slots=True)
class Allowed:
    """Forbids all tokens but those that `callback` gives for the text."""

    callback: Callable[[Text], Iterable[int]]

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        index = _tokens(self.callback(text), logits, "allowed tokens")
        return torch.full_like(logits, -math.inf).index_copy(0, index, logits[index])


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides logits by the temperature: below 1 sharpens the distribution, above 1 flattens it."""

    temperature: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        return (logits - logits.max()).double() / self.temperature  # at most 0, so that no small temperature overflows


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the `k` likeliest tokens, and those that are as likely as the last of them (Fan 2018, arXiv:1805.04833)."""

    k: int

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        least = logits.topk(min(self.k, len(logits))).values[-1]
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the likeliest tokens that together have probability `p`, one at least (Holtzman 2020, arXiv:1904.09751)."""

    p: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        ordered, order = logits.softmax(dim=-1).sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= self.p
        beyond[0] = False
        return logits.index_fill(0, order[beyond], -math.inf)


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps tokens at least `p` times as likely as the likeliest (Nguyen 2024, arXiv:2407.01082)."""

    p: float

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        return logits.masked_fill(logits < logits.max() + math.log(self.p), -math.inf)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from logits.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only so many of the likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together have this probability; 1: all.
        min_p: only tokens at least so many times as likely as the likeliest; 0: all.
        repetition_penalty: see `RepetitionPenalty`; 1: none.
        presence_penalty, frequency_penalty: see `CountPenalty`; 0: none.
        no_repeat_ngram: see `NoRepeatNgram`; 0: any may be repeated.
        processors: more edits, which come after those and before temperature and filters.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        for name in ("top_k", "no_repeat_ngram"):
            count(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if not hasattr(getattr(self, name), "__float__"):  # as numbers of all libraries have it
                raise UserError(f"{name}: expected a number; found {getattr(self, name)!r:.80}")
        for name, fits, expected in (
                ("temperature", 0 <= self.temperature < math.inf, "not negative"),
                ("top_p", 0 <= self.top_p <= 1, "from 0 to 1"), ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
                ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
                ("presence_penalty", math.isfinite(self.presence_penalty), "a number"),
                ("frequency_penalty", math.isfinite(self.frequency_penalty), "a number")):
            if not fits:
                raise UserError(f"{name}: expected {expected}; found {getattr(self, name)}")

    @property
    def edits(self) -> tuple[Processor, ...]:
        """What changes logits by the text; beam search does it too."""
        edits: list[Processor] = []
        if self.repetition_penalty != 1:
            edits.append(RepetitionPenalty(self.repetition_penalty))
        if self.presence_penalty or self.frequency_penalty:
            edits.append(CountPenalty(self.presence_penalty, self.frequency_penalty))
        if self.no_repeat_ngram:
            edits.append(NoRepeatNgram(self.no_repeat_ngram))
        return (*edits, *self.processors)

    @property
    def filters(self) -> tuple[Processor, ...]:
        """What shapes the distribution that a token is drawn from: temperature, top-k, top-p, min-p."""
        filters: list[Processor] = [Temperature(self.temperature)]
        if self.top_k:
            filters.append(TopK(self.top_k))
        if self.top_p < 1:
            filters.append(TopP(self.top_p))
        if self.min_p:
            filters.append(MinP(self.min_p))
        return tuple(filters)

    def edited(self, logits: Tensor, text: Text) -> Tensor:
        """Logits `[V]` as the edits leave them.

        Raises:
            UserError: they leave no token.
            RunError: the model's logits are not numbers.
        """
        for edit in self.edits:
            logits = edit(logits, text)
        if not (best := float(logits.max())) > -math.inf:
            if math.isnan(best):
                raise RunError(f"the model's logits are not numbers after {len(text.new)} new tokens")
            raise UserError(f"no token is allowed after {len(text.new)} new tokens: what is forbidden by bias, constraint or "
                            "no_repeat_ngram is together every one, the end token too")
        return logits

    def __call__(self, logits: Tensor, text: Text, generator: torch.Generator | None) -> int:
        """A token from logits `[V]`, which go on `text`; errors as those of `edited`."""
        logits = self.edited(logits, text)
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits, text), 1, generator=generator))

    def rows(self, logits: Tensor, texts: Sequence[Text], generators: Sequence[torch.Generator | None]) -> list[int]:
        """A token for each of some texts, from logits `[B, V]`, as by itself; errors as those of `edited`."""
        if self.temperature == 0 and not self.edits:  # all at once
            tokens_B = torch.from_numpy(logits.detach().numpy().argmax(axis=-1))  # torch's own takes ten times as long
            if bool((logits.gather(1, tokens_B[:, None]) > -math.inf).all()):
                chosen: list[int] = tokens_B.tolist()
                return chosen
        return [self(*each) for each in zip(logits, texts, generators, strict=True)]

    def probabilities(self, logits: Tensor, text: Text) -> Tensor:
        """The distribution `[V]` that a token is drawn from, in float64; without temperature, of the likeliest alone."""
        if self.temperature == 0:
            return torch.zeros(len(logits), dtype=torch.float64).index_fill(0, logits.argmax(), 1.0)
        for part in self.filters:
            logits = part(logits, text)
        return logits.softmax(dim=-1)


def count(name: str, value: Any) -> int:
    """An argument that says how many.

    Raises:
        UserError: it is no whole number, or negative.
    """
    if (number := _whole(value)) is None or number < 0:
        raise UserError(f"{name}: expected a whole number, not negative; found {value!r:.80}")
    return number


def checked_seed(seed: Any) -> int | None:
    """A seed as torch takes it, with room for those of a batch's other rows.

    Raises:
        UserError: it is none.
    """
    if seed is None:
        return None
    if (number := _whole(seed)) is None or not -2**63 <= number < 2**63:
        raise UserError(f"seed: expected a whole number of 64 bits, from -2**63 to 2**63 - 1; found {seed!r:.80}")
    return number


def _whole(value: Any) -> int | None:
    """A whole number of any library as an int; None: it is no such thing."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _tokens(ids: Iterable[int], logits: Tensor, what: str) -> Tensor:
    """Token ids as an index, checked."""
    index = torch.tensor(list(ids), dtype=torch.long)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(logits):
        wrong = next(i for i in index.tolist() if not 0 <= i < len(logits))
        raise UserError(f"{what}: expected ids of the {len(logits)} tokens; found {wrong}")
    return index
