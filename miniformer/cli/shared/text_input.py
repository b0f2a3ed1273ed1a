"""Text from the command line and from standard input, which is refused where it is not UTF-8; and the type of seeds."""

from __future__ import annotations

from typing import BinaryIO

import click

from miniformer.kernel.errors import UserError
from miniformer.kernel.text_file import HEAD, STDIN, foreign

ESCAPES = {"\\n": "\n", "\\t": "\t"}
SEED = click.IntRange(0, 2**63 - 1)
"""Seeds that torch accepts."""


def decoded(where: str, content: bytes) -> str:
    """The text that bytes encode, with \\n as the only line end, and without a byte order mark before it.

    Raises:
        UserError: they are not UTF-8; the error has `where`, and what they are, or the wrong byte and its position.
    """
    if what := foreign(STDIN, content[:HEAD]):
        raise UserError(f"{where}: {what}")
    return _text(where, content)


def _text(where: str, content: bytes) -> str:
    try:
        return content.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1}") from None


def checked_text(where: str, text: str) -> str:
    """The text of an argument, in which Python holds bytes that are no UTF-8 as halves of surrogate pairs.

    Raises:
        UserError: it has such bytes.
    """
    _text(where, text.encode("utf-8", "surrogateescape"))
    return text


def read_line(file: BinaryIO, number: int) -> str:
    """The next line of standard input; empty at its end.

    Raises:
        UserError: it is not UTF-8.
    """
    return decoded(f"standard input:{number}", file.readline())


def unescaped(text: str) -> str:
    """A string of the command line in which escapes such as \\n are replaced by the characters that they stand for."""
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    return text
