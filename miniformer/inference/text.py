"""Text from tokens as they come: pieces that never split a character, and strings that end a text wherever tokens cut them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from miniformer.kernel.errors import UserError
from miniformer.kernel.task import Tokenizer

WINDOW = 16
"""Tokens that are decoded again with each new one: more than a character takes, and enough to know spaces between words."""
UNFINISHED = "\ufffd"


class TextWriter:
    """The text of one row, piece by piece; all pieces together are `text`.

    Args:
        tokenizer: decodes tokens.
        before: tokens that the text goes on, which decide whether it starts with a space; they are no part of it.
        stop: strings that end the text; neither they nor what follows is part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise UserError("stop: an empty string is in every text; expected some characters")
        self.tokenizer, self.stop = tokenizer, stop
        self.text, self.stopped = "", False
        self._held = ""
        self._start_window(before)

    def push(self, token: int) -> str:
        """What is certain of the text with one token more and was not before; sets `stopped` at a stop string."""
        self._window.append(token)
        decoded = self.tokenizer.decode(self._window)
        # only a last character can be one whose bytes are not all there
        certain = decoded[:-1] if decoded.endswith(UNFINISHED) else decoded
        new = certain[len(self._told):]
        self._told += new
        if len(self._window) >= 2 * WINDOW and certain == decoded:
            self._start_window(self._window)
        return self._pass(new)

    def end(self) -> str:
        """The rest, when no token follows."""
        rest = self.tokenizer.decode(self._window)[len(self._told):]
        self._told += rest
        return self._pass(rest, last=True)

    def _start_window(self, tokens: Sequence[int]) -> None:
        self._window = list(tokens[-WINDOW:])
        self._told = self.tokenizer.decode(self._window)

    def _pass(self, new: str, last: bool = False) -> str:
        """What of the text can be told now: all but an ending that may be the start of a stop string."""
        if self.stopped:
            return ""
        held = self._held + new
        found = [(at + len(stop), at) for stop in self.stop if (at := held.find(stop)) >= 0]
        if found:  # the first to be complete, so that it does not hang on where tokens end
            self.stopped, ready, self._held = True, held[:min(found)[1]], ""
        else:
            starts = (n for stop in self.stop for n in range(1, len(stop)) if held.endswith(stop[:n]))
            keep = 0 if last else max(starts, default=0)
            ready, self._held = held[:len(held) - keep], held[len(held) - keep:]
        self.text += ready
        return ready


def strings(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """An argument that is a string or several, as several.

    Raises:
        UserError: it is something else.
    """
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for one in found:
        if not isinstance(one, str):
            raise UserError(f"{name}: expected a string, or a list of them; found {one!r:.80}")
    return found
