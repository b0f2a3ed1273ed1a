"""Names of files and folders that are made from what a user names: whole characters, printable, and no longer than allowed."""

from __future__ import annotations

import os
from pathlib import Path

from miniformer.kernel.errors import UserError

NAME_BYTES, PATH_BYTES = 255, 4096
"""The usual limits of a name and of a whole path, where the system does not say its own."""


def check_length(path: Path, what: str, below: int = 0) -> None:
    """Refuse a path that is too long for a file or folder, before there is anything to write.

    Args:
        path: the place; it need not exist.
        what: what the user calls it, such as `--output`.
        below: bytes of the paths that will be made below it.

    Raises:
        UserError: with its length and the limit.
    """
    whole, name_bytes = path.absolute(), name_limit(path)
    for name in whole.parts:
        if (size := len(os.fsencode(name))) > name_bytes:
            raise UserError(f"{what} {name[:20]}...: cannot be written: File name too long: it has {size} bytes; expected at "
                            f"most {name_bytes}")
    path_bytes = _limit(path, "PC_PATH_MAX", PATH_BYTES) - 1 - below
    if (size := len(os.fsencode(whole))) > path_bytes:
        raise UserError(f"{what} {path.name[:20]}...: cannot be written: File name too long: its whole path has {size} bytes; "
                        f"expected at most {path_bytes}")


def is_file(path: Path) -> bool:
    """Whether a file is there. Unlike `Path.is_file`, it answers for a name too long and for a closed folder too."""
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Whether a folder is there, for any path that a user may write."""
    return os.path.isdir(path)


def name_limit(path: Path) -> int:
    """The most bytes of a name where `path` is."""
    return _limit(path, "PC_NAME_MAX", NAME_BYTES)


def shortened(name: str, size: int) -> str:
    """As many of the first characters of a name as fit into `size` bytes."""
    while len(os.fsencode(name)) > size:
        name = name[:-1]
    return name


def printable(name: str) -> str:
    """A name with `_` for what no terminal shows: control characters, and bytes that are no UTF-8."""
    return "".join(character if character.isprintable() else "_" for character in name)


def as_argument(path: Path) -> str:
    """A path as it is written after a command, which takes one that begins with a dash for an option."""
    return f".{os.sep}{path}" if str(path).startswith("-") else str(path)


def _limit(path: Path, which: str, usual: int) -> int:
    """A limit of the file system that `path` is on, or will be on."""
    for folder in path.absolute().parents:
        try:
            return os.pathconf(folder, which)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError):  # a name too long, a system that does not say, Windows
            return usual
    return usual
