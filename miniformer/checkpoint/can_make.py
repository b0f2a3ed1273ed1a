"""Whether a file or a folder can be made at a place, found out before hours of work whose result is to go there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from miniformer.kernel.errors import UserError


def check_can_make(path: Path, option: str) -> None:
    """Try to write in the folder that `path` is to be in or, if it has yet to be made, in the nearest one above it.

    What `access` says is not enough: it knows of no full disk, and lets an administrator write anywhere.

    Raises:
        UserError: nothing can be written there; the error names `option`, by which the user chooses another place.
    """
    folder = path.absolute().parent
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"{path}: {folder} is a file; expected a folder")
        if path.is_file():
            path.open("ab").close()
            return
        probe = folder / f".{secrets.token_hex(8)}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {folder}: {reason}; choose another {option}") from None
