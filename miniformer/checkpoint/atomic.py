"""Files and folders that are complete or absent: each is written under a temporary name, synced, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import WriteError

from .file_names import is_folder, name_limit, shortened

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
"""Errors of a disk, a quota or a file that is full. Writers that say no number, such as numpy's, have few other reasons."""
PARTLY = re.compile("inline_container|PytorchStreamWriter|write failed|iostream error")
"""What `torch.save` says where its archive could not be written to the end; it does not say why."""
SURROGATE = re.compile("[\ud800-\udfff]")


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Make file `path`: `write` fills a temporary file, which then takes its place.

    Raises:
        WriteError: the place cannot be written; nothing is left there, and an earlier file stays as it was.
    """
    with reported(path):
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
    """Make file `path` with `data` as JSON. Names of files that are no UTF-8 are written in escapes, and read as they were."""
    write_file(path, lambda target: _put(target, data))


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make folder `path`: `write` fills a temporary folder, which then takes its place.

    An earlier folder is replaced. It is first moved to `.<name>.previous`, where `settled` finds it if the machine stops
    between the two renames, and removed at the end.

    Raises:
        WriteError: the place cannot be written, with the file that `write` named (`reported`); an earlier folder stays.
    """
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.mkdir()
            _filled(temporary, path, write)
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
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
    return True


def settled(path: Path) -> Path:
    """Where folder `path` is now: in place, or set aside while it is being replaced. Nothing is moved."""
    return _previous(path) if is_folder(_previous(path)) and not path.exists() else path


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Write file or folder `path` inside: what a writer raises where that cannot be done becomes an error that names it.

    Raises:
        WriteError: with the reason, and with the room that is left if there is too little.
    """
    try:
        yield
    except Exception as error:
        if (reason := _why_not_written(error)) is None:
            raise
        raise WriteError(f"{path}: cannot be written: {reason}{_room(path) if _number(error) in NO_ROOM else ''}") from error


def _why_not_written(error: Exception) -> str | None:
    """Why a file could not be written; None if the error is of another kind. Each library has its own way to say it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":
        number = _number(error)
        return str(error).partition("\n")[0] if number is None else os.strerror(number)
    return "not all of it could be written" if type(error) is RuntimeError and PARTLY.search(str(error)) else None


def _number(error: Exception) -> int | None:
    """The system's number of an error; None if it is not known."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _room(path: Path) -> str:
    """The end of an error's text: how much may still be written on the disk of `path`."""
    place = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return ""
    return f"; {free / 2**30:,.1f} GiB are free there" if free >= 2**30 else f"; {free / 2**20:,.1f} MiB are free there"


def _filled(temporary: Path, path: Path, write: Callable[[Path], None]) -> None:
    """Fill the temporary folder of folder `path`; an error names the file as it would have been."""
    try:
        write(temporary)
    except WriteError as error:
        raise WriteError(str(error).replace(str(temporary), str(path))) from error


def _temporary(path: Path) -> Path:
    """A name in the same folder, so that renaming it to `path` copies nothing."""
    return path.with_name(f".{shortened(path.name, 100)}.{secrets.token_hex(4)}")


def _previous(path: Path) -> Path:
    path = path.absolute()  # "." has no name of its own
    name, room = path.name, name_limit(path) - len("..previous")
    if len(os.fsencode(name)) > room:
        name = f"{shortened(name, room - 9)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return path.parent / f".{name}.previous"


def _put(path: Path, data: Any) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text), encoding="utf-8")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
