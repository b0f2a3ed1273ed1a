"""What an engine returns: whole answers, or the pieces of a text as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from miniformer.decoding.beam_search import Hypothesis
from miniformer.decoding.loop import Finish, RunningText

from .batching import Prompt
from .text import TextWriter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that was written after a prompt.

    Attributes:
        prompt: as it was given.
        text: the new text, without the prompt and without what ended it.
        tokens: the new tokens; without the end token, and with those of a stop string.
        logprobs: the log-probability of each token by the model, before any edit or filter.
        finish_reason: `eos`: the model ended it; `stop`: a stop string did; `length`: it is as long as it may be.
        score: its score in a beam search; None: it was not searched for.
    """

    prompt: str
    text: str
    tokens: list[int] = field(repr=False)
    logprobs: list[float] = field(repr=False)
    finish_reason: Finish
    score: float | None = None


class Stream(Iterator[str]):
    """The pieces of a text as they are written; afterwards `answer` is the whole answer."""

    answer: Answer | None = None

    def __init__(self, pieces: Iterator[str | Answer]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        piece = next(self._pieces)
        if isinstance(piece, str):
            return piece
        self.answer = piece
        raise StopIteration


def empty_answer(prompt: Prompt) -> Answer:
    """The answer where no token may be written."""
    return Answer(prompt.text, "", [], [], "length")


def answer_of(prompt: Prompt, text: RunningText | Hypothesis, writer: TextWriter, score: float | None = None) -> Answer:
    """The answer that a text gives which has ended."""
    count = len(text.new) - (text.finish == "eos")
    return Answer(prompt.text, writer.text, text.new[:count], text.logprobs[:count], text.finish or "length", score)


def in_order(placed: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Values that come with their places 0, 1, 2, … in any order, in the order of places."""
    early: dict[int, T] = {}
    next_place = 0
    for place, value in placed:
        early[place] = value
        while next_place in early:
            yield early.pop(next_place)
            next_place += 1
