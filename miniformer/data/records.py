"""The records of a run: read from a file or the embedded corpus, digested, and some of them held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.kernel.errors import DataError
from miniformer.kernel.task import Task

from . import stdlib
from .jsonl import STDIN, named, read_lines


class Located(NamedTuple):
    """A record, where it stands (`file:line`), the digest of its content, and the byte at which its line starts."""

    where: str
    record: Any
    digest: bytes
    start: int


def read(path: str, task: Task) -> tuple[list[Located], dict[str, Any]]:
    """All records of a file, or of `stdlib`, and a fingerprint, by which to see whether two runs read the same.

    Raises:
        DataError: with file and line.
    """
    total = hashlib.sha256()
    records: list[Located] = []
    for where, record, start in _found(path, task):
        content = record.model_dump_json().encode()
        total.update(content + b"\n")
        records.append(Located(where, record, hashlib.sha256(content).digest(), start))
    source = path if path == stdlib.NAME else named(path) if Path(path) == STDIN else str(Path(path).resolve())
    return records, {"source": source, "records": len(records), "sha256": total.hexdigest()}


def _found(path: str, task: Task) -> Iterable[tuple[str, Any, int]]:
    if path == stdlib.NAME:
        return ((where, record, 0) for where, record in task.stdlib())
    return ((line.where, line.record, line.start) for line in read_lines(Path(path), task.Record))


def hold_out(records: Sequence[Located], fraction: float, source: str) -> tuple[list[Located], list[Located]]:
    """Training and held-out records: those whose content has the lowest digests, so that order and seed do not matter.

    Equal records stay together; `fraction` is of those that differ.

    Raises:
        DataError: there are not two records that differ.
    """
    if len(records) < 2:
        raise DataError(f"{source}: one record only, so none can be held out to measure on; give --val-path")
    different = sorted({located.digest for located in records})
    if len(different) < 2:
        raise DataError(f"{source}: all records are alike, so none can be held out to measure on; give --val-path")
    held = set(different[:min(math.ceil(fraction * len(different)), len(different) - 1)])
    return ([located for located in records if located.digest not in held],
            [located for located in records if located.digest in held])


def some_text(task: Task, records: Iterable[Located], size: int) -> Iterable[str]:
    """Texts of about `size` characters, of records that are chosen by content alone, not by where the file is."""
    for located in sorted(records, key=lambda located: located.digest):
        for text in task.texts(located.record):
            yield text
            size -= len(text)
        if size < 0:
            return
