"""What a file is whose first lines are no JSON lines, and one command that makes JSON lines of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import DataError
from miniformer.kernel.text_file import STDIN

MOST_LINES = 10_000
"""Lines in which the end of an object is looked for."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def told(path: Path, first: str, rest: Iterable[str], *, is_start: bool) -> str:
    """What the file is and how to convert it; "" if all that can be said is what is wrong with its line.

    Args:
        path: of the file; `-`: standard input.
        first: the line that is no record.
        rest: the lines after it; some are taken.
        is_start: no record stands before that line.
    """
    if is_start and re.match(r"\[\s*(\{|$)", first):
        return f"the file is one JSON array; {_converted(path, 'json', 'json.load(sys.stdin.buffer)')}"
    if first.startswith("{"):
        return _object(path, first, rest)
    if not is_start:
        return ""
    separator = SEPARATORS.get(path.suffix.lower()) or _separator(first)
    if separator:
        rows = f"csv.DictReader(sys.stdin, delimiter={json.dumps(separator)})"
        return f"a table with columns, not JSON; {_converted(path, 'csv, json', rows)}"
    return "XML or HTML, not JSON; expected one JSON object in each line" if first.startswith("<") else ""


def _object(path: Path, first: str, rest: Iterable[str]) -> str:
    """As `told`, of a file that begins with an object over several lines."""
    text, value = first, _decoded(first)
    if value is not None:
        return ""
    with suppress(DataError):  # the lines after it may be worse
        for line in islice(rest, MOST_LINES):
            text += "\n" + line
            if line.strip().startswith("}") and (value := _decoded(text)) is not None:
                break
    if value is None and first != "{":
        return ""
    lists = [name for name, item in (value or {}).items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    file, new = _names(path)
    what = "a JSON object over several lines; expected each object in one line"
    if len(lists) == 1:
        field = shlex.quote(f".[{json.dumps(lists[0])}][]")
        return f"{what}; the objects in its field {lists[0]!r} are written so by: jq -c {field} {file} > {new}"
    return f"{what}; to write it so: jq -c . {file} > {new}"


def _decoded(text: str) -> dict[str, Any] | None:
    """The object at the start of a text; None if there is no whole one."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _separator(line: str) -> str:
    """What separates the names in the first line of a table; "" if the line does not look like one."""
    name = r'("[^"]*"|[A-Za-z_][\w .-]*)'
    return next((mark for mark in ",;\t" if re.fullmatch(f"{name}({mark}{name})+", line)), "")


def _converted(path: Path, modules: str, records: str) -> str:
    """What is expected, and a line of Python that writes it."""
    program, (file, new) = f"import {modules}, sys; [print(json.dumps(r)) for r in {records}]", _names(path)
    return f"expected one object in each line; to write it so: python -c {shlex.quote(program)} < {file} > {new}"


def _names(path: Path) -> tuple[str, str]:
    """The names of a file and of the one that is made from it, fit for a shell."""
    if path == STDIN:
        return "FILE", "data.jsonl"
    new = path.with_suffix(".jsonl")
    new = path.with_name(f"{path.stem}-lines.jsonl") if new == path else new
    return shlex.quote(str(path)), shlex.quote(str(new))
