"""Every error that miniformer raises on purpose, with the exit code that the command line gives it.

`UserError` (exit 2) is a mistake that the user can correct: a name, an option, a line of data. `RunError` (exit 1) is a run
that failed; a `WriteError` among them is a place that cannot be written, which the user can correct too (exit 2).
`Interrupted` (128 + signal) is a run that a signal stopped. Any other exception that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MiniformerError(Exception):
    """Base of all errors raised on purpose; a user can act on its text."""

    exit_code = 1


class UserError(MiniformerError):
    """The input is wrong; the text says where, and what would be right."""

    exit_code = 2


class SpecError(UserError):
    """A spec names something impossible: an unknown option, a value out of range, parts that do not fit."""


class DataError(UserError):
    """A data file cannot be used; the text starts with the file and, if known, the line."""


class UnknownComponent(UserError):
    """No component of that kind has that name."""


class AmbiguousComponent(UserError):
    """The short name that was used is registered by two distributions."""


class UnavailableComponent(UserError):
    """The component is registered but broken, blocked or made for another version of miniformer."""


class OutOfMemory(UserError):
    """Memory ran out; the text says what needs less."""


class StateError(MiniformerError):
    """A decoding state cannot do what was asked, such as hold more tokens than its capacity."""


class RunError(MiniformerError):
    """A run cannot continue, for example because its loss is not finite."""


class WriteError(RunError):
    """A file cannot be written; the text names it, and the room that is left. A user can make room, or name another place."""

    exit_code = UserError.exit_code


class Interrupted(MiniformerError):
    """A signal stopped the run, which has saved its state; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like `name`, best first; an empty list if none is near."""
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error's text, `"; did you mean 'x' or 'y'?"`, or "" if no name is near."""
    close = nearest(name, names)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def in_one_line(error: BaseException) -> str:
    """The type and the message of any error, which may be one that cannot say its message, in one line of bounded length."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message cannot be read)"
    return f"{type(error).__name__}: {message[:500]}" if message else type(error).__name__
