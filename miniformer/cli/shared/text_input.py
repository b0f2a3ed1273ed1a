"""What the command line and standard input give: seeds that torch takes, and text, refused where it is not UTF-8."""

from __future__ import annotations

from typing import BinaryIO

import click

from miniformer.kernel.errors import UserError

ESCAPES = {"\\n": "\n", "\\t": "\t"}
SEED = click.IntRange(0, 2**63 - 1)


def decoded(where: str, content: bytes) -> str:
    """The text of some bytes, with line ends as Python has them.

    Raises:
        UserError: they are not UTF-8; `where`, the byte and its place are told.
    """
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1}") from None


def checked_text(where: str, text: str) -> str:
    """The text of an argument, which holds the bytes that were no UTF-8 as halves of surrogate pairs.

    Raises:
        UserError: there are some.
    """
    decoded(where, text.encode("utf-8", "surrogateescape"))
    return text


def read_line(file: BinaryIO, number: int) -> str:
    """The next line of standard input; empty at its end.

    Raises:
        UserError: it is not UTF-8.
    """
    return decoded(f"standard input:{number}", file.readline())


def unescaped(text: str) -> str:
    """A string of the command line with its escapes, such as \\n, as what they stand for."""
    for escape, meant in ESCAPES.items():
        text = text.replace(escape, meant)
    return text
