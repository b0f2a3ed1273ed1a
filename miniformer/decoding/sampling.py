"""How a token is chosen from logits: the text so far edits them, filters leave out unlikely tokens, and one token is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miniformer.kernel.errors import RunError, UserError

from .arguments import checked_count
from .defaults import DEFAULTS
from .processors import Allowed as Allowed
from .processors import CountPenalty as CountPenalty
from .processors import LogitBias as LogitBias
from .processors import MinP as MinP
from .processors import NoRepeatNgram as NoRepeatNgram
from .processors import Processor as Processor
from .processors import RepetitionPenalty as RepetitionPenalty
from .processors import Temperature as Temperature
from .processors import Text as Text
from .processors import TopK as TopK
from .processors import TopP as TopP

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from logits.

    Attributes:
        temperature: logits are divided by it; 1 changes nothing, and 0 takes the likeliest token (greedy).
        top_k: only this many of the likeliest tokens; 0: all.
        top_p: only the fewest likeliest tokens whose probabilities add up to this; 1: all.
        min_p: only tokens at least this fraction as likely as the likeliest; 0: all.
        repetition_penalty: see `RepetitionPenalty`; 1: none.
        presence_penalty, frequency_penalty: see `CountPenalty`; 0: none.
        no_repeat_ngram: see `NoRepeatNgram`; 0: any run of tokens may be repeated.
        processors: more edits, made after those above and before temperature and filters.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = DEFAULTS.temperature
    top_k: int = DEFAULTS.top_k
    top_p: float = DEFAULTS.top_p
    min_p: float = DEFAULTS.min_p
    repetition_penalty: float = DEFAULTS.repetition_penalty
    presence_penalty: float = DEFAULTS.presence_penalty
    frequency_penalty: float = DEFAULTS.frequency_penalty
    no_repeat_ngram: int = DEFAULTS.no_repeat_ngram
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        for name in ("top_k", "no_repeat_ngram"):
            checked_count(name, getattr(self, name))
        for name in NUMBERS:
            if not hasattr(getattr(self, name), "__float__"):  # which numbers of every library have
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
        """The processors that change logits by looking at the text; beam search makes these edits too."""
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
        """The processors that shape the distribution that a token is drawn from: temperature, top-k, top-p, min-p."""
        filters: list[Processor] = [Temperature(self.temperature)]
        if self.top_k:
            filters.append(TopK(self.top_k))
        if self.top_p < 1:
            filters.append(TopP(self.top_p))
        if self.min_p:
            filters.append(MinP(self.min_p))
        return tuple(filters)

    def edited(self, logits: Tensor, text: Text) -> Tensor:
        """Logits `[V]` after all edits.

        Raises:
            UserError: the edits leave no token.
            RunError: the model's logits are not numbers.
        """
        for edit in self.edits:
            logits = edit(logits, text)
        if not (best := float(logits.max())) > -math.inf:
            if math.isnan(best):
                raise RunError(f"the model's logits are not numbers after {len(text.new)} new tokens")
            raise UserError(f"no token is allowed after {len(text.new)} new tokens: bias, constraint and no_repeat_ngram "
                            "together forbid every token, the end token too")
        return logits

    def __call__(self, logits: Tensor, text: Text, generator: torch.Generator | None) -> int:
        """A token that continues `text`, chosen from logits `[V]`. Raises the errors of `edited`."""
        logits = self.edited(logits, text)
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits, text), 1, generator=generator))

    def rows(self, logits: Tensor, texts: Sequence[Text], generators: Sequence[torch.Generator | None]) -> list[int]:
        """A token for each of several texts, from logits `[B, V]`, each as it would be chosen alone.

        Raises the errors of `edited`.
        """
        if self.temperature == 0 and not self.edits:  # nothing looks at the texts, so all rows go at once
            tokens_B = torch.from_numpy(logits.detach().numpy().argmax(axis=-1))  # torch's own argmax takes ten times as long
            if bool((logits.gather(1, tokens_B[:, None]) > -math.inf).all()):
                tokens: list[int] = tokens_B.tolist()
                return tokens
        return [self(*row) for row in zip(logits, texts, generators, strict=True)]

    def probabilities(self, logits: Tensor, text: Text) -> Tensor:
        """The distribution `[V]` that a token is drawn from, in float64; at temperature 0 the likeliest token has it all."""
        if self.temperature == 0:
            return torch.zeros(len(logits), dtype=torch.float64).index_fill(0, logits.argmax(), 1.0)
        for processor in self.filters:
            logits = processor(logits, text)
        return logits.softmax(dim=-1)


UNFILTERED = Sampling(temperature=1.0, top_k=0, top_p=1.0)
"""Draws from the model's own distribution."""
