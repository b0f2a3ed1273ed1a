"""Reading files that people hand over: an error says what a file is that should be text in UTF-8 and is something else.

A byte order mark before the text is passed over. Nothing waits in silence, and nothing is read without end.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, BinaryIO, TypeVar

from .errors import UserError

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
HEAD = 4096
"""Bytes at the start of a file by which it is recognised."""
LARGEST = 2**27
"""Bytes of the largest file that is read as a whole."""
PATIENCE = 2.0
"""Seconds after which it is said that a pipe has no writer."""

PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"BZh": "bzip2"}
"""Compressed files: the first bytes, and the program that unpacks them with -dc."""
TABLES = {b"PAR1": ("a Parquet file", "read_parquet"), b"ARROW1": ("an Arrow file", "read_feather"),
          b"FEA1": ("an Arrow file", "read_feather"), b"ORC": ("an ORC file", "read_orc"),
          b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel file", "read_excel")}
"""Files of tables: the first bytes, what they are, and the function of pandas that reads them."""
ZIP = "a zip archive"
OTHERS = {b"PK\x03\x04": ZIP, b"PK\x05\x06": ZIP, b"7z\xbc\xaf\x27\x1c": "a 7z archive",
          b"Rar!\x1a\x07": "a rar archive", b"Obj\x01": "an Avro file", b"SQLite format 3\0": "an SQLite database",
          b"\x89HDF\r\n": "an HDF5 file", b"\x93NUMPY": "an array of numpy", b"%PDF-": "a PDF", b"\x89PNG": "a picture",
          b"\xff\xd8\xff": "a picture", b"GIF8": "a picture", b"\x7fELF": "a program", b"\x80\x02": "a pickle of Python",
          b"\x80\x03": "a pickle of Python", b"\x80\x04": "a pickle of Python", b"\x80\x05": "a pickle of Python",
          b"\0\0": "binary data that begins with zero bytes"}
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks of encodings that are not UTF-8."""
WEIGHTS = re.compile(rb'[^{]{5}\0{3}\{"')
STDIN = Path("-")


def foreign(path: Path, head: bytes) -> str:
    """What a file with these first bytes is, and what to do with it, if it is not text in UTF-8; "" if it may be such text.

    Args:
        path: of the file; `-`: standard input.
        head: the first bytes, `HEAD` of them or fewer.
    """
    if not _is_binary(head):
        return ""
    file = "FILE" if path == STDIN else str(path)
    quoted = shlex.quote(file)
    if packing := _beginning(PACKED, head):
        plain = shlex.quote("data.jsonl" if path == STDIN else path.stem if Path(path.stem).suffix else f"{path.stem}.jsonl")
        return f"compressed by {packing}; unpack it first: {packing} -dc {quoted} > {plain}"
    is_excel = b"[Content_Types].xml" in head or path.suffix.lower() in (".xlsx", ".xlsm", ".ods")
    if table := _beginning({**TABLES, b"PK\x03\x04": ("an Excel file", "read_excel")} if is_excel else TABLES, head):
        what, read = table
        convert = (f'import pandas; pandas.{read}({json.dumps(file)}).to_json({json.dumps(f"{Path(file).stem}.jsonl")}, '
                   'orient="records", lines=True, force_ascii=False)')
        return f"{what}; write it as JSON lines first: python -c {shlex.quote(convert)}"
    if WEIGHTS.match(head):
        return "a file of weights (safetensors); expected text in UTF-8"
    if encoding := _beginning(MARKS, head) or _unmarked(head):
        new = shlex.quote(f"utf8-{Path(file).name}")
        return f"{encoding}, not UTF-8; write it in UTF-8 first: iconv -f {encoding} -t UTF-8 {quoted} > {new}"
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it first: tar -xf {quoted}"
    other = _beginning(OTHERS, head)
    if other == ZIP:
        return f"{other}; unpack it first: unzip {quoted}"
    return "" if other is None else f"{other}; expected text in UTF-8"


def _beginning(kinds: Mapping[bytes, T], head: bytes) -> T | None:
    """What belongs to the first bytes; None if nothing does."""
    return next((kind for start, kind in kinds.items() if head.startswith(start)), None)


def _is_binary(head: bytes) -> bool:
    """Whether these bytes are no text in UTF-8: not its encoding, or control characters other than white space."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return any(character < " " and not character.isspace() for character in text)


def _unmarked(head: bytes) -> str:
    """UTF-16 or UTF-32 without a byte order mark, known by the zero bytes of its first ASCII characters."""
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"000x": "UTF-32BE", "x000": "UTF-32LE", "0x0x": "UTF-16BE", "x0x0": "UTF-16LE"}.get(zeros, "")


def open_file(path: Path, error: type[UserError] = UserError) -> BinaryIO:
    """A file opened to be read once, from its start; a pipe is fine, and if nothing writes to it, that is said.

    Raises:
        OSError: as `open` does.
        UserError: of type `error`: a device or a socket, which have no end.
    """
    try:
        with _saying_that_it_waits(path):
            file = path.open("rb")
    except ValueError:
        raise error(f"{str(path)!r}: not a name that a file can have") from None
    except OSError as problem:
        if problem.errno == errno.ENXIO:
            raise error(f"{path}: a socket or a device that is not there; expected a file") from None
        raise
    mode, is_null = os.fstat(file.fileno()).st_mode, os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull))
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not is_null and not file.isatty()):
        file.close()
        raise error(f"{path}: a device, which may have no end; expected a file")
    return file


@contextmanager
def _saying_that_it_waits(path: Path) -> Iterator[None]:
    """Log it if a named pipe takes long to open, which it does until something opens it to write."""
    if not stat.S_ISFIFO(path.stat().st_mode):
        yield
        return
    import logging  # few files are pipes, and without it a command starts sooner

    logger = logging.getLogger(__name__)
    timer = Timer(PATIENCE, logger.warning, (f"{path}: waiting for something to write to this pipe",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_text(path: str | Path, error: type[UserError] = UserError) -> str:
    """The text of a file in UTF-8, without a byte order mark, and with its line ends as they are.

    Raises:
        UserError: of type `error`: it cannot be read, or is no text; the message says what it is, or the line and the byte.
    """
    path = Path(path)
    try:
        with open_file(path, error) as file:
            content = file.read(HEAD)
            if what := foreign(path, content):
                raise error(f"{path}: {what}")
            content += file.read(LARGEST + 1 - len(content))
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    if len(content) > LARGEST:
        raise error(f"{path}: more than {LARGEST // 2**20} MiB; expected a small file of text")
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as problem:
        line = problem.object.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}:{line}: cannot be read: not UTF-8: byte 0x{problem.object[problem.start]:02x} at byte "
                    f"{problem.start + 1}; save the file as UTF-8") from None


def read_json(path: str | Path, error: type[UserError] = UserError) -> Any:
    """The JSON value in a file.

    Raises:
        UserError: of type `error`: as `read_text`, or it is no JSON; the message names the line.
    """
    text = read_text(path, error)
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        found = "found nothing" if not text.strip() else f"{problem.msg.removesuffix(' at')} at column {problem.colno}"
        raise error(f"{path}:{problem.lineno}: not JSON: {found}") from None
    except UnicodeEncodeError as problem:
        character = problem.object[problem.start]
        raise error(f"{path}: not usable JSON: {character!a} is half of a surrogate pair") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not usable JSON: {_plainly(problem)}") from None
    return value


def _plainly(problem: Exception) -> str:
    return "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem).partition(";")[0]
