"""Every error that miniformer raises on purpose, with the exit code that the command line gives it.

`UserError` (exit 2) is a mistake that the user can correct: a name, an option, a line of data. `RunError` (exit 1) is a run
that failed; a `WriteError` among them is a place that cannot be written, which the user can correct too (exit 2).
`ComponentError` (exit 1) is a component with a fault in its code, such as one of a plugin.
`Interrupted` (128 + signal) is a run that a signal stopped. Any other exception that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .synonyms import meant_by, why_absent


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


class ComponentError(MiniformerError):
    """A component of a model failed; the text says which, where it is used, and in which line of its code."""


class WriteError(RunError):
    """A file cannot be written; the text names it, and the room that is left. A user can make room, or name another place."""

    exit_code = UserError.exit_code


class Interrupted(MiniformerError):
    """A signal stopped the run, which has saved its state; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that `name` may have been meant for, best first; an empty list if none is near.

    These are the names that differ in capitals and dashes only; else those by which other tools call the same thing (see
    `synonyms`); else those that are spelt much alike.

    Args:
        name: what was written.
        names: what there is.
        count: how many to return at most.
    """
    known, wanted = _by_plain_name(names), _plain(name)
    close = [wanted] if wanted in known else [other for other in meant_by(wanted) if other in known]
    close = close or _alike(wanted, list(known))
    return [shown for each in dict.fromkeys(close) for shown in known[each]][:count]


def did_you_mean(name: str, names: Iterable[str], *, settings: bool = False, shown: Mapping[str, str] | None = None) -> str:
    """The end of an error's text, `"; did you mean 'x' or 'y'?"`, or "" if no name is near.

    Args:
        name: what was written.
        names: what there is.
        settings: these are names of settings. Of a setting that other tools have and miniformer does not, the text says so.
        shown: how to write some of the names.
    """
    names, shown = list(names), shown or {}
    absent = why_absent(_plain(name)) if settings else ""
    if absent and not {_plain(name), *meant_by(_plain(name))} & _by_plain_name(names).keys():
        return f"; {absent}"
    close = [repr(shown.get(each, each)) for each in nearest(name, names)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(_plain(name), []).append(name)
    return known


def _plain(name: str) -> str:
    """A name as it is compared: in small letters, with underscores, and without the dashes of an option."""
    return name.strip().lstrip("-").lower().replace("-", "_").replace(" ", "_")


def _alike(wanted: str, known: list[str]) -> list[str]:
    """The names that are spelt like `wanted`, those most alike first; then those that have all its words."""
    least = 0.7 if len(wanted) > 3 else 0.66  # of short names, one letter is much
    close = [name for name in difflib.get_close_matches(wanted, known, n=10, cutoff=least)
             if not _same_but_unlike(wanted, name)]
    words = _words(wanted)
    close += [name for name in known if len(wanted) > 2 and words <= _words(name)]
    return close + [name for name in known if len(wanted) > 4 and name.startswith(wanted[:5])
                    and difflib.SequenceMatcher(None, wanted, name).ratio() > 0.5 and not _same_but_unlike(wanted, name)]


def _same_but_unlike(wanted: str, name: str) -> bool:
    """Whether the names are alike only by words that they share, as `image_size` and `batch_size` are."""
    shared = _words(wanted) & _words(name)
    if not shared:
        return False
    one, other = ("_".join(word for word in text.split("_") if word not in shared) for text in (wanted, name))
    short = max(len(one), len(other)) <= 2  # `top_q` is `top_p` with a letter mistaken
    return bool(one and other) and not short and difflib.SequenceMatcher(None, one, other).ratio() < 0.6


def _words(name: str) -> set[str]:
    return set(name.split("_"))


def in_one_line(error: BaseException) -> str:
    """The type and the message of any error, which may be one that cannot say its message, in one line of bounded length."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message cannot be read)"
    return f"{type(error).__name__}: {message[:500]}" if message else type(error).__name__


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Around calls of a library that is written in Rust: a fault of its own is raised as a RuntimeError.

    It raises a "panic" then, which is no `Exception`, so that it passes by every `except Exception`.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 makes the class anew in each library, and none can be imported
            raise
        raise RuntimeError(f"the library stopped at a fault of its own: {' '.join(str(error).split())}") from None


def line_of(error: BaseException, module: str) -> str:
    """The innermost line of an error's traceback that belongs to the package of `module`, such as `acme/attention.py:31`.

    Without one it is the innermost line that is not torch's.
    """
    from traceback import walk_tb  # errors are rare, and without it a command starts sooner

    package, own, other = module.partition(".")[0], "", ""
    for frame, number in walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
        line = f"{file_in_package(frame.f_code.co_filename, name)}:{number}"
        if name.partition(".")[0] == package:
            own = line
        elif name.partition(".")[0] != "torch":
            other = line
    return own or other


def file_in_package(file: str, module: str) -> str:
    """The path of a module's file from the folder of its package on, such as `acme/attention.py`."""
    return "/".join(Path(file).parts[-1 - module.count(".") - (Path(file).name == "__init__.py"):])
