"""JSON-lines files read through a task's record model; every error names its file and line."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from miniformer.kernel.errors import DataError, did_you_mean, nearest
from miniformer.kernel.text_file import BOM, HEAD, foreign, open_file

from . import not_lines

R = TypeVar("R", bound=BaseModel)
STDIN = Path("-")
SHOULD_BE = "Input should be "
LONGEST_LINE = 2**28
"""Bytes in a line. What has more is no record, but a file without line ends."""


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        where: its place, `file:line`.
        text: the line itself.
        data: the JSON object in it.
        record: the record made from that object.
        start: the offset in bytes at which the line begins.
    """

    where: str
    text: str
    data: dict[str, Any]
    record: Any
    start: int = 0


def read_records(path: str | Path, record: type[R]) -> Iterator[tuple[str, R]]:
    """The records of a file, each with its place (`file:line`). Blank lines are skipped.

    Raises:
        DataError: no such file, a directory, a device, not UTF-8, not JSON, not an object, a field missing or of the wrong
            type, or no records at all.
    """
    for line in read_lines(Path(path), record):
        yield line.where, line.record


def read_lines(path: Path, record: type[BaseModel]) -> Iterator[Line]:
    """The lines of a file, or of standard input if the path is `-`. Blank lines are skipped; errors as `read_records`."""
    for line in read_each(path, record, stops=True):
        if isinstance(line, DataError):
            raise line
        yield line


def read_each(path: Path, record: type[BaseModel], *, stops: bool = False) -> Iterator[Line | DataError]:
    """The lines as `read_lines` gives them; in place of a line that cannot be used, the error that says why.

    Args:
        path, record: as for `read_lines`.
        stops: nothing is read after the first error, so that it may look ahead and say what the whole file is.

    Raises:
        DataError: the file cannot be read, or has no records.
    """
    empty, lines = True, _lines(path)
    for where, text, start in lines:
        line: Line | DataError
        try:
            line = _parsed(where, text, start, record)
        except DataError as error:
            following = (text for _, text, _ in lines)
            if (stops or empty) and (what := not_lines.told(path, text, following, is_start=empty)):
                raise DataError(f"{where}: {what}") from None
            line = error
        yield line
        empty = False
    if empty:
        raise DataError(f"{named(path)}: no records; expected one JSON object in each line, such as {_sketch(record)}")


def records_at(path: Path, starts: Iterable[int], record: type[R]) -> Iterator[R]:
    """The records of the lines that begin at the byte offsets `starts` in a file that `read_lines` has read before."""
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            line = file.readline().removeprefix(BOM).decode().rstrip()
            yield _parsed(f"{path}, byte {start}", line, start, record).record


def check_file(path: Path) -> None:
    """Raise the error of `read_records` if a file cannot be read at all, before anything else is done.

    A pipe and standard input are not touched: they can be read only once.
    """
    try:
        mode = 0 if path == STDIN else path.stat().st_mode
        if path == STDIN or stat.S_ISFIFO(mode):
            return
        if stat.S_ISCHR(mode):  # a terminal, unless it is refused
            open_file(path, DataError).close()
            return
    except (OSError, ValueError):  # reading it says what is wrong
        pass
    next(_lines(path), None)


def named(path: str | Path) -> str:
    """The name of a file in messages."""
    return "standard input" if Path(path) == STDIN else str(path)


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Place, text and first byte of each line that is not blank. Only newlines end a line: JSON may hold other separators."""
    name, start = named(path), 0
    if path == STDIN and sys.stdin is None:
        raise DataError(f"{name}: closed; expected JSON lines")
    try:
        with nullcontext(sys.stdin.buffer) if path == STDIN else open_file(path, DataError) as file:
            for number, raw in enumerate(_whole_lines(file, path), start=1):
                where = f"{name}:{number}"
                try:
                    line = raw.removeprefix(BOM).decode().rstrip()
                except UnicodeDecodeError as error:  # its positions count from after a byte order mark
                    raise DataError(f"{where}: not UTF-8: byte 0x{error.object[error.start]:02x} at column "
                                    f"{error.start + 1}; save the file as UTF-8") from None
                if line:
                    yield where, line, start
                start += len(raw)
    except IsADirectoryError:
        raise DataError(f"{path}: a directory; expected a file of JSON lines") from None
    except FileNotFoundError:
        if os.path.islink(path):
            raise DataError(f"{path}: a link to {os.readlink(path)}, which is not there") from None
        raise DataError(f"{path}: no such file{_near(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _whole_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a file, as bytes.

    Raises:
        DataError: the file is no text in UTF-8, or a line has no end.
    """
    start = file.peek(HEAD) if hasattr(file, "peek") else b""
    if what := foreign(path, start[:HEAD]):
        raise DataError(f"{named(path)}:1: {what}")
    for number in count(1):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise DataError(f"{named(path)}:{number}: longer than {LONGEST_LINE // 2**20} MiB, the most that a line may have; "
                            "expected one JSON object in each line")
        if not line:
            return
        yield line


def _near(path: Path) -> str:
    """A hint at similar files beside a missing one. Names are compared without suffixes, which most data files share."""
    try:
        files = sorted(p for p in path.parent.glob("*") if os.path.isfile(p))
    except OSError:
        return ""
    close = [file.name for stem in nearest(path.stem, {file.stem for file in files})
             for file in sorted(files, key=lambda file: file.suffix != path.suffix) if file.stem == stem]
    return f"; did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""


def _parsed(where: str, line: str, start: int, record: type[BaseModel]) -> Line:
    try:
        data = JSON.decode(line)
        if "\\ud" in line or "\\uD" in line:  # an escape can be half of a surrogate pair, which no file can hold
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        message = _extra(line[error.pos:]) if error.msg == "Extra data" else error.msg.removesuffix(" at")
        raise DataError(f"{where}: not JSON: {message} at column {error.colno}; found {_cut(line)}") from None
    except RecursionError:
        raise DataError(f"{where}: not usable JSON: it is nested too deeply; found {_cut(line)}") from None
    except ValueError as error:  # NaN, a repeated key, too long a number, or half of a surrogate pair
        raise DataError(f"{where}: not usable JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{where}: expected a JSON object such as {_sketch(record)}; found {_cut(line)}")
    return Line(where, line, data, validated(where, data, record), start)


def _extra(text: str) -> str:
    """What is wrong with what follows the first value of a line."""
    if text.startswith(","):
        return "a comma after the object"
    return "more than one object in the line" if text.startswith("{") else "something after the first value"


def validated(where: str, data: dict[str, Any], record: type[R]) -> R:
    """The record made from a JSON object.

    Raises:
        DataError: with `where`, the field, what was found and what was expected.
    """
    try:
        return record.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{where}: {_first_fault(error, data)}") from None


def _first_fault(error: ValidationError, data: dict[str, Any]) -> str:
    faults = error.errors(include_url=False)
    fault = faults[0]
    field = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "missing":
        names = _cut(", ".join(map(repr, data))) or "no fields"
        return f"field {field!r} is missing; found {names}{did_you_mean(field, map(str, data))}"
    message = fault["msg"].removeprefix("Value error, ")
    if not field:  # a fault of the record as a whole
        return message
    for next_fault in faults[1:]:  # pydantic reports one fault for each type that a field may have
        if next_fault["loc"][:-1] == fault["loc"][:-1] and next_fault["input"] is fault["input"]:
            message += f" or {next_fault['msg'].removeprefix(SHOULD_BE)}"
    place = "".join(f", element {at + 1}" for at in fault["loc"][1:] if isinstance(at, int))
    found = "" if "; found " in message else f"; found {_cut(_written(fault['input']))}"
    return f"field {field!r}{place}: {message[:1].lower()}{message[1:]}{found}"


def _written(value: Any) -> str:
    """A value as JSON has it, or as Python does where JSON cannot."""
    try:
        return json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no names, numbers too long to write, too deep a nesting
        return f"{type(value).__name__} that JSON cannot hold"


def _sketch(record: type[BaseModel]) -> str:
    return "{" + ", ".join(f'"{name}": …' for name, field in record.model_fields.items() if field.is_required()) + "}"


def _cut(text: str) -> str:
    text = text if len(text) <= 80 else text[:77] + "..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return data


JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
