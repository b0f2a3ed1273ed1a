"""Notes about lengths: texts that are longer than those that a model was trained on, and what is left out of them."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class LengthNotes:
    """Says in the log, each of them once, that a prompt or text is longer than those of training, or that something is cut.

    Args:
        most: the most tokens of a text in training, `max_seq_len`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._told: set[str] = set()

    def beyond(self, prompt: int, text: int) -> None:
        """Of a model whose positions do not end: a prompt, or all that is read before the last new token, beyond training."""
        if prompt > self.most:
            self._say("prompt", f"the prompt has {prompt:,} tokens, and the model was trained on at most max_seq_len = "
                                f"{self.most:,}; it may write worse after such a prompt")
        elif text > self.most:
            self._say("text", f"the text may go on after {text:,} tokens, and the model was trained on at most max_seq_len = "
                              f"{self.most:,}; it may write worse beyond that")

    def shorter(self, asked: int, room: int) -> None:
        """Of a model whose positions end: fewer new tokens than were asked for."""
        if room < asked:
            self._say("room", f"at most {room:,} new tokens instead of {asked:,}: the model's positions end at max_seq_len = "
                              f"{self.most:,}, prompt included where it continues one")

    def left_out(self, prompt: int, kept: int) -> None:
        """The start of a prompt that was too long."""
        self._say("start", f"the prompt has {prompt:,} tokens, and the model reads at most max_seq_len = {self.most:,}, new "
                           f"tokens included where it continues one; only its last {kept:,} are read")

    def cut(self, texts: int, of: int, longest: int) -> None:
        """Texts whose end is not read."""
        if texts:
            self._say("cut", f"{texts:,} of {of:,} texts were cut to max_seq_len = {self.most:,} tokens; the longest has "
                             f"{longest:,}")

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            logger.warning(message)
