"""The folder of a run: its name, its making, and what becomes of it when the run fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniformer import __version__
from miniformer.checkpoint.atomic import make_folder
from miniformer.checkpoint.provenance import environment, provenance
from miniformer.data.jsonl import STDIN
from miniformer.data.prepare import PreparedData, token_counts
from miniformer.kernel.errors import RunError, UserError

from .processes import why_a_process_died
from .train_config import TrainConfig

RECORD = "run.json"


def free_folder(config: TrainConfig) -> Path:
    """The folder that the run would have now. It does not exist yet, and is not made here.

    Raises:
        UserError: a folder of the run's name is there, or `work_dir` is a file.
    """
    root = Path(config.work_dir)
    if root.exists() and not root.is_dir():
        raise UserError(f"work_dir {root}: a file; expected a folder")
    if config.experiment_name is not None:
        folder = root / config.experiment_name
        if folder.exists():
            raise UserError(f"{folder} exists already; choose another --experiment-name, or remove it")
        return folder
    data = "stdin" if config.train_path == str(STDIN) else Path(config.train_path).stem
    name = f"{data}-{config.task.name.rpartition(':')[2]}"
    numbers = [path.name.removeprefix(f"{name}-") for path in root.glob(f"{name}-*")]
    taken = [int(number) for number in numbers if number.isdecimal()]
    return root / f"{name}-{max(taken, default=0) + 1}"


def new_folder(config: TrainConfig) -> Path:
    """Make the run's folder.

    Raises:
        UserError: a folder of the run's name is there, or `work_dir` is a file.
    """
    while True:
        folder = free_folder(config)
        if make_folder(folder):  # False where another run took the name in between
            return folder


def describe(spec: Mapping[str, Any], config: TrainConfig, data: PreparedData) -> dict[str, Any]:
    """The content of `run.json`: everything that decides the run.

    Args:
        spec: the model and the task, as JSON data.
        config: the completed run.
        data: what it is trained on.
    """
    fields, counts = config.to_data(), token_counts(data.train.examples)
    return {"miniformer": __version__, **spec, "train": fields, **provenance([spec, fields]), "packages": environment(),
            "data": {**data.fingerprint, "train_tokens": counts["tokens"]}}


@contextmanager
def errors_name(folder: Path, first: bool) -> Iterator[None]:
    """Add the run folder to the message of a `RunError`, and remove the folder if nothing but `run.json` is in it.

    The death of a worker, or of another process of the run, becomes a `RunError`.

    Args:
        folder: the run folder.
        first: this process is the one of its run that writes files.
    """
    try:
        yield
    except BaseException as error:
        place = f"run folder: {folder}"
        if first and [path.name for path in folder.iterdir()] == [RECORD]:
            (folder / RECORD).unlink()
            folder.rmdir()
            place = f"nothing was saved, so the run folder {folder} was removed"
        died = why_a_process_died(error)
        if died or isinstance(error, RunError):
            raise RunError(f"{died or error} ({place})") from error
        raise
