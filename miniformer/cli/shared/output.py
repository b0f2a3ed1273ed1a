"""What commands write, and to which stream.

A text always gets out: a character that the stream's encoding lacks is written as `\\uXXXX`, as JSON and Python write it, so
that JSON stays JSON. A stream that is full or closed gives one clear error, and only a note where a result is in a file. In a
command whose standard output is its result, whatever else is printed goes to standard error.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from miniformer.kernel.errors import MiniformerError

ESCAPES = "miniformer.escapes"
"""Name of the way in which characters are written that an encoding lacks."""


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start:error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i:i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPES, _escaped)


class OutputLost(MiniformerError):
    """Standard output is full or closed, and what the command found is not written."""


class Guarded:
    """A stream that is written through another, and that is silent once the other takes no more.

    Args:
        stream: of text or of bytes; None: one that is closed.
        keeps_going: a failure gives a note instead of an error.
        told: say on standard error, once, that a text was lost.
    """

    def __init__(self, stream: Any, *, keeps_going: bool = False, told: bool = True) -> None:
        self.stream = open(os.devnull) if stream is None else stream  # noqa: SIM115 — it takes the place of the closed stream
        self.keeps_going, self.told = keeps_going, told
        self.is_finished = self.is_lost = False
        """Finished: nobody needs the rest, so a reader that has gone is no reason to stop."""

    def write(self, content: Any) -> int:
        if not isinstance(content, str):
            raise TypeError(f"expected text; found {type(content).__name__}")
        if not content:  # click tries what a stream takes, and drops the error
            return 0
        return self._tried(self.stream.write, content)

    def writelines(self, contents: Any) -> None:
        for content in contents:
            self.write(content)

    def flush(self) -> None:
        self._tried(self.stream.flush)

    @property
    def buffer(self) -> Any:
        return _Bytes(self)

    @property
    def encoding(self) -> str:
        """As others see it: click would write UTF-8 to a stream that says it takes ASCII."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return "latin-1" if codecs.lookup(encoding).name == "ascii" else encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _tried(self, action: Any, *contents: Any) -> Any:
        if not self.is_lost:
            try:
                return action(*contents)
            except OSError as error:
                self._fail(error)
        return sum(map(len, contents))

    def _fail(self, error: OSError) -> None:
        self.is_lost = True
        with suppress(OSError, ValueError):  # what is still in the stream's buffer would fail again at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            if not (self.keeps_going and (self.is_finished or not self.told)):
                raise error
            return
        problem = f"standard output cannot be written: {error.strerror or 'it is closed'}"
        if not self.keeps_going:
            raise OutputLost(problem) from error
        if self.told:
            click.echo(f"note: {problem}; what is shown from here on is lost, and the command goes on", err=True)


class _Bytes:
    """The bytes below a guarded stream of text."""

    def __init__(self, above: Guarded) -> None:
        self.above = above

    def write(self, content: bytes) -> int:
        return self.above._tried(self.above.stream.buffer.write, content) if content else 0

    def flush(self) -> None:
        self.above._tried(self.above.stream.buffer.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.above.stream.buffer, name)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard standard output and standard error; what cannot be written to standard error is lost without a word."""
    before, streams = (sys.stdout, sys.stderr), [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    ways = [getattr(stream, "errors", None) for stream in streams]
    _let_errors_be(dict(zip(streams, [ESCAPES] * len(streams), strict=True)))
    out: Any = Guarded(sys.stdout)
    err: Any = None if sys.stderr is None else Guarded(sys.stderr, keeps_going=True, told=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        with suppress(OSError, ValueError, OutputLost):
            out.flush()
        sys.stdout, sys.stderr = before
        _let_errors_be(dict(zip(streams, ways, strict=True)))


def _let_errors_be(ways: dict[Any, str | None]) -> None:
    for stream, way in ways.items():
        if way is not None and hasattr(stream, "reconfigure"):
            with suppress(OSError):  # it writes first what is in the buffer
                stream.reconfigure(errors=way)


def result_is_in_a_file(is_finished: bool = False) -> None:
    """From here on, text that standard output does not take is lost, and the command goes on.

    Args:
        is_finished: the result is written; so a reader that has gone does not stop the command either.
    """
    stream = result_stream()
    if isinstance(stream, Guarded):
        stream.keeps_going, stream.is_finished = True, is_finished


_result: list[Any] = []
"""Standard output as it was before the command that is running kept it for its result."""


def result_stream() -> Any:
    """The stream that a command's result goes to."""
    return _result[-1] if _result else sys.stdout


def say(text: str = "", nl: bool = True) -> None:
    """Write some of a command's result, with a line end unless `nl` is false."""
    click.echo(text, nl=nl, file=_result[-1] if _result else None)


class ResultCommand(click.Command):
    """A command whose standard output is its result, written by `say`: what plugins and libraries print is no part of it."""

    def invoke(self, context: click.Context) -> Any:
        _result.append(sys.stdout)
        sys.stdout = sys.stderr
        try:
            return super().invoke(context)
        finally:
            sys.stdout = _result.pop()
