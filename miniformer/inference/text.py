"""Text from tokens as they come: pieces never split a character, and stop strings end a text wherever tokens cut them."""

from __future__ import annotations

from collections.abc import Sequence

from miniformer.kernel.errors import UserError
from miniformer.kernel.task import Tokenizer

WINDOW = 16
"""The latest tokens, decoded again with each new one: enough for every character, and to know the spaces between words."""
UNFINISHED = "\ufffd"
"""What a tokenizer decodes bytes to that are not a whole character."""


class TextWriter:
    """Makes one text of tokens, piece by piece; all pieces together are `text`, which is what the tokens decode to.

    With byte fallback, bytes in a row are decoded together, and one that does not fit changes what was made of those before it.
    So they are held until another token follows. A stop string ends the text where it is seen, as nothing follows it.

    Args:
        tokenizer: decodes tokens.
        before: the tokens before the text, which decide whether it starts with a space; they are not part of it.
        stop: strings that end the text; neither they nor what follows is part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise UserError("stop: an empty string is in every text; expected some characters")
        self.tokenizer, self.stop = tokenizer, stop
        self.text, self.stopped = "", False
        self._held = self._decoded = self._whole = ""
        self._before_bytes: str | None = None
        self._bytes: frozenset[int] = getattr(tokenizer, "byte_tokens", frozenset())
        last = next((n for n in range(len(before), 0, -1) if before[n - 1] not in self._bytes), len(before))
        self._start_window(before[:last])  # bytes of the text are none of the prompt's characters

    def push(self, token: int) -> str:
        """Add a token; return the part of the text that it makes certain. Sets `stopped` at a stop string."""
        self._window.append(token)
        before, self._whole = self._whole, self.tokenizer.decode(self._window)
        if token in self._bytes:
            self._before_bytes = before if self._before_bytes is None else self._before_bytes
        elif self._whole != before:  # a token without text does not end the bytes
            self._before_bytes = None
        certain = self._before_bytes
        if certain is None:  # of a last character some bytes may still be missing
            certain = self._whole[:-1] if self._whole.endswith(UNFINISHED) else self._whole
        new, possible = certain[len(self._decoded):], self._whole[len(certain):].rstrip(UNFINISHED)
        self._decoded += new
        if len(self._window) >= 2 * WINDOW and certain == self._whole:
            self._start_window(self._window)
        return self._pass(new, possible)

    def end(self) -> str:
        """The rest of the text, when no token follows."""
        rest = self._whole[len(self._decoded):]
        self._decoded += rest
        return self._pass(rest, last=True)

    def _start_window(self, tokens: Sequence[int]) -> None:
        self._window = list(tokens[-WINDOW:])
        self._decoded = self._whole = self.tokenizer.decode(self._window)
        self._before_bytes = None

    def _pass(self, new: str, possible: str = "", last: bool = False) -> str:
        """The part of the text that is certain now: all but an ending that may be the start of a stop string.

        A stop string may lie in what is only `possible` after it: since the text ends there, no token can change it.
        """
        if self.stopped:
            return ""
        text = self._held + new
        matches = []
        for stop in self.stop:
            if (at := (text + possible).find(stop)) >= 0:
                matches.append((at + len(stop), at))
        if matches:  # the one that is complete first, so that the text does not depend on where tokens end
            self.stopped, ready, self._held = True, (text + possible)[:min(matches)[1]], ""
        else:
            starts = (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
            keep = 0 if last else max(starts, default=0)
            ready, self._held = text[:len(text) - keep], text[len(text) - keep:]
        self.text += ready
        return ready


def text_after(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of some tokens that go on from those before them, which decide whether it starts with a space."""
    window = list(before[-WINDOW:])
    return tokenizer.decode([*window, *tokens])[len(tokenizer.decode(window)):]
