"""The folder of a run: its making, what is written down of it, and what becomes of it when the run fails."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from miniformer import __version__
from miniformer.checkpoint.atomic import make_folder
from miniformer.checkpoint.provenance import environment, provenance
from miniformer.checkpoint.record import RECORD, Record
from miniformer.data.prepare import PreparedData, token_counts
from miniformer.kernel.errors import ComponentError, Interrupted, OutOfMemory, RunError, UserError, WriteError
from miniformer.kernel.out_of_memory import memory_errors

from .processes import why_a_process_died
from .run_name import free_folder
from .train_config import TrainConfig

LESS_MEMORY = ("a smaller batch_size, max_seq_len, d_model or n_layers needs less, and so does activation_checkpointing; "
               "accumulate_grad_batches keeps the size of a step")
"""What to change where a run's memory runs out."""


def new_folder(config: TrainConfig) -> Path:
    """Make the run's folder.

    Raises:
        UserError: a folder of the run's name is there, the name is too long, or `work_dir` is a file.
    """
    while not make_folder(folder := free_folder(config)):  # another run took the name in between
        if folder == free_folder(config):
            raise UserError(f"{folder}: something is in the way that is not listed in its folder; choose another work_dir")
    return folder


def describe(spec: Mapping[str, Any], config: TrainConfig, data: PreparedData) -> dict[str, Any]:
    """What decides a run, for its `run.json`.

    Args:
        spec: the model and the task, as JSON data.
        config: the completed run.
        data: what it is trained on.
    """
    fields, counts = config.to_data(), token_counts(data.train.examples)
    return {"miniformer": __version__, **spec, "train": fields, **provenance([spec, fields]), "packages": environment(),
            "data": {**data.fingerprint, "train_tokens": counts["tokens"], "notes": list(data.notes)}}


@contextmanager
def errors_name(record: Record, step: Callable[[], int]) -> Iterator[None]:
    """Note in `run.json` how a run ends before its time, and add the run folder to the message of a run that failed.

    The folder is removed if nothing was saved in it.

    The death of a worker, or of another process of the run, becomes a `RunError`.

    Args:
        record: of the run.
        step: gives the optimizer steps done.
    """
    try:
        with memory_errors(LESS_MEMORY):
            yield
    except BaseException as error:
        died = why_a_process_died(error)
        place = f"run folder: {record.folder}"
        if record.writes and removed(record.folder):
            place = f"nothing was saved, so the run folder {record.folder} was removed"
        else:
            with suppress(WriteError):  # such as on a full disk, of which the error tells already
                _note_end(record, step(), error, died)
        if died:
            raise RunError(f"{died} ({place})") from error
        if isinstance(error, (RunError, OutOfMemory, ComponentError)):
            raise type(error)(f"{error} ({place})") from error.__cause__ or error
        raise


def _note_end(record: Record, step: int, error: BaseException, died: str) -> None:
    """Write why the run ends: a signal, or an error."""
    pressed = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
    if isinstance(error, Interrupted) or pressed:
        number = error.exit_code - 128 if isinstance(error, Interrupted) else signal.SIGINT
        record.write("stopped", step, signal=signal.Signals(number).name)
    else:
        record.write("failed", step, error=f"{died or error}".partition("\n")[0] or type(error).__name__)


def removed(folder: Path) -> bool:
    """Remove a run folder that holds nothing but `run.json`; whether it was one."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {RECORD}:
        return False
    (folder / RECORD).unlink(missing_ok=True)
    folder.rmdir()
    return True
