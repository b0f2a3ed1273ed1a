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
    """Makes one text of tokens, piece by piece; all pieces together are `text`.

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
        self._held = ""
        self._start_window(before)

    def push(self, token: int) -> str:
        """Add a token; return the part of the text that it makes certain. Sets `stopped` at a stop string."""
        self._window.append(token)
        decoded = self.tokenizer.decode(self._window)
        # of a last character some bytes may still be missing
        certain = decoded[:-1] if decoded.endswith(UNFINISHED) else decoded
        new = certain[len(self._decoded):]
        self._decoded += new
        if len(self._window) >= 2 * WINDOW and certain == decoded:
            self._start_window(self._window)
        return self._pass(new)

    def end(self) -> str:
        """The rest of the text, when no token follows."""
        rest = self.tokenizer.decode(self._window)[len(self._decoded):]
        self._decoded += rest
        return self._pass(rest, last=True)

    def _start_window(self, tokens: Sequence[int]) -> None:
        self._window = list(tokens[-WINDOW:])
        self._decoded = self.tokenizer.decode(self._window)

    def _pass(self, new: str, last: bool = False) -> str:
        """The part of the text that is certain now: all but an ending that may be the start of a stop string."""
        if self.stopped:
            return ""
        text = self._held + new
        matches = []
        for stop in self.stop:
            if (at := text.find(stop)) >= 0:
                matches.append((at + len(stop), at))
        if matches:  # the one that is complete first, so that the text does not depend on where tokens end
            self.stopped, ready, self._held = True, text[:min(matches)[1]], ""
        else:
            starts = (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
            keep = 0 if last else max(starts, default=0)
            ready, self._held = text[:len(text) - keep], text[len(text) - keep:]
        self.text += ready
        return ready
