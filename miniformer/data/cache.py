"""The cache of prepared data: the next run on the same files need not read, split and encode them again.

An entry is a folder. Its name is the digest of everything that decides its content: path, size, inode and times of change of
each file; the task with its source files; the tokenizer; the fraction that is held out; versions. It holds the tokens as
arrays, which are mapped into memory, and the places of the records in the files, from which they are read when needed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from pydantic import BaseModel

from miniformer import __version__
from miniformer.checkpoint.atomic import write_folder
from miniformer.checkpoint.provenance import provenance
from miniformer.kernel.distributions import version_of
from miniformer.kernel.errors import DataError, RunError
from miniformer.kernel.spec import ComponentSpec, build
from miniformer.kernel.task import Split, Task

from . import stdlib
from .jsonl import STDIN, records_at
from .packing import Documents
from .prepare import PreparedData
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)
FORMAT = 2
"""Version of the entries; raised when the same files and settings may give other data than before."""
WORTH = 1_000_000
"""Bytes of text below which a cache would save no time."""
SETTLED = 2.0
"""Seconds for which a changed file is not cached: a second change within them could leave the same time stamp."""
KEPT = 8
"""Number of entries that are kept; the ones used least recently are deleted."""


class Settings(NamedTuple):
    """The arguments of `prepare_data` that packed documents depend on.

    Attributes:
        task: the task, in resolved form.
        paths: the training, validation and test files; None for a file that was not given.
        val_fraction, tokenizer, vocab_size: as in `prepare_data`.
    """

    task: ComponentSpec
    paths: tuple[str, str | None, str | None]
    val_fraction: float
    tokenizer: Tokenizer | None
    vocab_size: int


class Cache:
    """Stores the prepared data of a run and finds them again for the next one.

    Args:
        root: the folder of all entries; it is made when the first is written.
        settings: the settings of the run, which identify its entry.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings, self.key = root, settings, key_of(settings)

    def load(self) -> PreparedData | None:
        """The data that an earlier run prepared; None if there is no entry, or it is damaged, which is logged as a warning."""
        if self.key is None or not (folder := self.root / self.key).is_dir():
            return None
        try:
            data = _loaded(folder, self.settings)
        except Exception as error:  # a damaged file can raise almost anything
            logger.warning(f"{folder} is damaged, and is made anew: {' '.join(str(error).split())}")
            return None
        with suppress(OSError):
            os.utime(folder)  # entries are deleted by the time of their last use
        return data if key_of(self.settings) == self.key else None  # a file may have changed since the key was made

    def store(self, data: PreparedData) -> None:
        """Write prepared data, if all of them are packed documents. If they cannot be written, a warning is logged."""
        documents = all(isinstance(split.examples, Documents) for split in data.splits.values())
        # a file that changed while it was read gives another key now
        if not documents or self.key is None or key_of(self.settings) != self.key:
            return
        try:
            write_folder(self.root / self.key, lambda folder: _write(folder, data))
        except RunError as error:
            logger.warning(f"the prepared data are not kept: {error}")
            return
        with suppress(OSError):  # another run may be deleting entries too
            entries = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
            for path in sorted(entries, key=lambda path: path.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(path, ignore_errors=True)


def key_of(settings: Settings) -> str | None:
    """The digest of everything that decides the prepared data; None if it is not known, or a cache would save no time."""
    paths = [Path(path) for path in settings.paths if path is not None]
    if stdlib.NAME in settings.paths or STDIN in paths or not all(os.path.isfile(path) for path in paths):
        return None
    files = [path.stat() for path in paths]
    settled = time.time() - SETTLED
    if sum(file.st_size for file in files) < WORTH or any(max(file.st_mtime, file.st_ctime) > settled for file in files):
        return None
    task, tokenizer = build(Task, settings.task), settings.tokenizer
    if not task.packs or (tokenizer is not None and type(tokenizer) is not Tokenizer):
        return None
    spec = settings.task.model_dump(mode="json")
    return _digest(json.dumps({
        "format": FORMAT, "miniformer": __version__, "tokenizers": version_of("tokenizers"), **provenance(spec),
        "files": [None if path is None else _state(Path(path)) for path in settings.paths], "task": spec,
        "sources": _sources(task), "val_fraction": settings.val_fraction, "vocab_size": settings.vocab_size,
        "tokenizer": None if tokenizer is None else tokenizer.to_json()}).encode())


def _state(path: Path) -> list[Any]:
    """A description of a file that changes whenever its content does: path, size, inode and times of change."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]


def _sources(task: Task) -> list[str]:
    """Digests of the source files of a task's class: the author of a plugin may edit them between two runs."""
    modules = {inspect.getmodule(cls) for cls in type(task).__mro__}
    files = sorted(file for module in modules if (file := getattr(module, "__file__", None)))
    return [_digest(Path(file).read_bytes()) for file in files]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class RecordsOfFile(Sequence[Any]):
    """The records of a file, each read from it on access.

    Args:
        path: the file.
        starts: `[N]`, the byte at which the line of each record starts.
        record: the model of a line.

    Raises:
        DataError: on access, if the file has changed since this object was made.
    """

    def __init__(self, path: Path, starts: np.ndarray, record: type[BaseModel]) -> None:
        self.path, self.starts, self.record, self.state = path, starts, record, _state(path)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self._read(self.starts[index]))
        return next(self._read(self.starts[[index]]))

    def __iter__(self) -> Iterator[Any]:
        return self._read(self.starts)

    def _read(self, starts: np.ndarray) -> Iterator[Any]:
        if not self.path.is_file() or _state(self.path) != self.state:
            raise DataError(f"{self.path}: changed since the run has started")
        return records_at(self.path, starts.tolist(), self.record)


def _write(folder: Path, data: PreparedData) -> None:
    wide = data.tokenizer.vocab_size > 1 << 16
    sums: dict[str, int] = {}
    for name, split in data.splits.items():
        assert isinstance(split.examples, Documents)
        arrays = {"tokens": split.examples.stream.astype(np.int32 if wide else np.uint16), "starts": split.examples.starts,
                  "lines": data.lines[name]}
        if split.examples.byte_counts is not None:
            arrays["bytes"] = split.examples.byte_counts
        for kind, array in arrays.items():
            np.save(folder / f"{name}-{kind}.npy", array)
            sums[f"{name}-{kind}"] = _sum(array)
    tokenizer = data.tokenizer.to_json()
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    text = json.dumps({"task": data.task_spec.model_dump(mode="json"), "fingerprint": data.fingerprint, "sums": sums,
                       "tokenizer": _digest(tokenizer.encode()), "notes": data.notes})
    (folder / "data.json").write_text(f"{_digest(text.encode())}\n{text}", encoding="utf-8")


def _loaded(folder: Path, settings: Settings) -> PreparedData:
    digest, _, text = (folder / "data.json").read_text(encoding="utf-8").partition("\n")
    saved = json.loads(text)
    tokenizer_digest = _digest((folder / "tokenizer.json").read_bytes())
    for name, actual, expected in (("data.json", _digest(text.encode()), digest),
                                   ("tokenizer.json", tokenizer_digest, saved["tokenizer"])):
        if actual != expected:
            raise ValueError(f"{name} is not what was written")
    spec = ComponentSpec.model_validate(saved["task"])
    task = build(Task, spec)
    arrays: dict[str, np.ndarray] = {}
    for name, total in saved["sums"].items():
        arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        if _sum(arrays[name]) != total:
            raise ValueError(f"{name}.npy is not what was written")
    splits, lines = {}, {}
    for name, path in zip(("train", "val", "test"), settings.paths):
        if f"{name}-tokens" in arrays:
            lines[name] = arrays[f"{name}-lines"]
            splits[name] = Split(RecordsOfFile(Path(path or settings.paths[0] or ""), lines[name], task.Record),
                                 Documents(arrays[f"{name}-tokens"], arrays[f"{name}-starts"], arrays.get(f"{name}-bytes")))
    return PreparedData(spec, task, settings.tokenizer or Tokenizer.load(folder), splits["train"],
                        splits.get("val", splits["train"]), splits.get("test"), saved["fingerprint"], lines,
                        tuple(saved["notes"]))


def _sum(array: np.ndarray) -> int:
    """A checksum that takes no longer than reading the array."""
    content = array.view(np.uint8)
    whole = len(content) // 8 * 8  # eight bytes are added at a time, the last few singly
    return int(content[:whole].view(np.uint64).sum()) + int(content[whole:].sum())
