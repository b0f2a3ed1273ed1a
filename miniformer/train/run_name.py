"""The name of a run's folder, found without torch, so that a taken or impossible name is refused at once."""

from __future__ import annotations

import os
from pathlib import Path

from miniformer.checkpoint.file_names import check_length, is_folder, name_limit, printable, shortened
from miniformer.data.jsonl import STDIN
from miniformer.kernel.errors import UserError

from .train_config import TrainConfig

BELOW = 150
"""Bytes of the longest path below a run folder, such as that of a file of events that names the machine."""
NUMBER = 8
"""Bytes that are kept free for the number at the end of a name."""


def free_folder(config: TrainConfig) -> Path:
    """The folder that the run would have now. It does not exist yet, and is not made here.

    Raises:
        UserError: a folder of the run's name is there, the name is too long, or nothing can be written in `work_dir`.
    """
    root = Path(config.work_dir)
    check_length(root / "run", "work_dir", BELOW)
    _check_place(root)
    if config.experiment_name is not None:
        folder = root / config.experiment_name
        check_length(folder, "experiment_name", BELOW)
        if os.path.lexists(folder):
            raise UserError(f"{folder} exists already; choose another --experiment-name, or remove it")
        return folder
    data = "stdin" if config.train_path == str(STDIN) else Path(config.train_path).stem
    task = config.task.name.rpartition(":")[2]
    room = name_limit(root / "run") - len(os.fsencode(f"-{task}-")) - NUMBER
    return root / numbered(root, f"{shortened(printable(data), room)}-{task}")


def numbered(root: Path, name: str) -> str:
    """A name with the number after the highest that it has in folder `root`; on some systems case does not tell names apart."""
    start = f"{name}-".casefold()
    names = [entry.casefold() for entry in os.listdir(root)] if is_folder(root) else []
    numbers = [entry.removeprefix(start) for entry in names if entry.startswith(start)]
    return f"{name}-{max((int(number) for number in numbers if number.isdecimal()), default=0) + 1}"


def _check_place(root: Path) -> None:
    """Refuse a `work_dir` in which, or in whose nearest folder that is there, no folder can be made."""
    there = next(folder for folder in (root, *root.absolute().parents) if os.path.lexists(folder))
    if not is_folder(there):
        raise UserError(f"work_dir {root}: {'a file' if there == root else f'{there} is a file'}; expected a folder")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"work_dir {root}: cannot be written: {there} is closed to this user")
