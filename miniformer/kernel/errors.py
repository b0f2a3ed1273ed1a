"""Every error that miniformer raises on purpose, with the exit code that the CLI gives it.

`UserError` (exit 2) is something the user can mend: a name, an option, a line of data. `RunError` (exit 1) is a run that
failed. `Interrupted` (128 + signal) is a run that was told to stop. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MiniformerError(Exception):
    """Base of all errors raised on purpose; its text is one that a user can act on."""

    exit_code = 1


class UserError(MiniformerError):
    """The input is wrong, and the text says where and what would be right."""

    exit_code = 2


class SpecError(UserError):
    """A spec names something impossible: an unknown option, a value out of range, parts that do not fit."""


class DataError(UserError):
    """A data file cannot be used; the text starts with the file and, where there is one, the line."""


class UnknownComponent(UserError):
    """No component of that kind has that name."""


class AmbiguousComponent(UserError):
    """Two distributions register the short name that was used."""


class UnavailableComponent(UserError):
    """The component is registered but broken, blocked or made for another version of miniformer."""


class StateError(MiniformerError):
    """A decoding state was asked for what it cannot do, such as holding more tokens than its capacity."""


class RunError(MiniformerError):
    """A run cannot go on: a loss that is not finite, a folder that cannot be written."""


class Interrupted(MiniformerError):
    """A signal stopped the run after it saved what it had; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like `name`, best first; none if nothing is near."""
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint to end an error with: `"; did you mean 'x' or 'y'?"`, or nothing."""
    close = nearest(name, names)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
