"""Files and folders that are complete or absent: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import RunError


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Make `path` with what `write` puts into the temporary file it is given.

    Raises:
        RunError: the place cannot be written; nothing is left there, and what was there before stays.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o666 & ~_umask())
            _sync(Path(name))
            os.replace(name, path)
            _sync(path.parent)
        finally:
            Path(name).unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Make `path` with `data` as JSON."""
    write_file(path, lambda target: _put(target, data))


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make folder `path` with the files that `write` puts into the temporary folder it is given.

    A folder that is there already is replaced: it is moved to `.<name>.previous`, where `settled` finds it if the
    machine stops between the two renames, and removed at the end.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        settled(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            write(temporary)
            for file in temporary.iterdir():
                _sync(file)
            os.chmod(temporary, 0o777 & ~_umask())
            _sync(temporary)
            if path.exists():
                os.rename(path, _previous(path))
            os.rename(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(_previous(path), ignore_errors=True)


def settled(path: Path) -> Path:
    """`path`, after putting back the folder that an interrupted replacement had moved aside."""
    if _previous(path).is_dir() and not path.exists():
        os.rename(_previous(path), path)
    return path


def _previous(path: Path) -> Path:
    path = path.absolute()  # the folder one stands in has no name of its own
    return path.parent / f".{path.name}.previous"


def _put(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
