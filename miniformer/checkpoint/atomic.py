"""Files and folders that are complete or absent: each is written under a temporary name, synced, then renamed into place."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import RunError


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Make file `path`: `write` fills a temporary file, which then takes its place.

    Raises:
        RunError: the place cannot be written; nothing is left there, and an earlier file stays as it was.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.touch(exist_ok=False)
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Make file `path` with `data` as JSON."""
    write_file(path, lambda target: _put(target, data))


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make folder `path`: `write` fills a temporary folder, which then takes its place.

    An earlier folder is replaced. It is first moved to `.<name>.previous`, where `settled` finds it if the machine stops
    between the two renames, and removed at the end.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.mkdir()
            write(temporary)
            for file in temporary.iterdir():
                file.chmod(temporary.stat().st_mode & 0o666)  # as for any new file: some writers let nobody else read theirs
                _sync(file)
            _sync(temporary)
            if path.exists():
                shutil.rmtree(_previous(path), ignore_errors=True)  # left by a machine that stopped before removing it
                os.rename(path, _previous(path))
            os.rename(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(_previous(path), ignore_errors=True)


def make_folder(path: Path) -> bool:
    """Make folder `path` and return True; if something is there already, do nothing and return False."""
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
    return True


def settled(path: Path) -> Path:
    """Where folder `path` is now: in place, or set aside while it is being replaced. Nothing is moved."""
    return _previous(path) if not path.exists() and _previous(path).is_dir() else path


def _temporary(path: Path) -> Path:
    """A name in the same folder, so that renaming it to `path` copies nothing."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _previous(path: Path) -> Path:
    path = path.absolute()  # "." has no name of its own
    return path.parent / f".{path.name}.previous"


def _put(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
