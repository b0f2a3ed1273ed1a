"""`run.json`: what decides a run, how far it is, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from miniformer.kernel.errors import UserError

from .atomic import write_json
from .missing import RECORD as RECORD
from .store import BEST, read_object

Status = Literal["running", "finished", "stopped", "failed"]


class Record:
    """The `run.json` of a run, written anew whenever the run gets further.

    Args:
        folder: the run folder.
        decided: what decides the run, which stays as it is.
        writes: this process is the one of its run that writes files.

    Attributes:
        step: the one of the latest saved state.
    """

    def __init__(self, folder: Path, decided: Mapping[str, Any], writes: bool) -> None:
        self.folder, self.decided, self.writes, self.step = folder, decided, writes, 0

    def write(self, status: Status, step: int, **facts: Any) -> None:
        """Say how far the run is.

        Args:
            status: `running`, `finished`, `stopped` by a signal, or `failed`. One that was killed still says `running`.
            step: optimizer steps done.
            facts: of this status, such as the name of the signal.

        Raises:
            WriteError: the file cannot be written; it stays as it was.
        """
        self.step = step
        if self.writes:
            write_json(self.folder / RECORD, {**self.decided, "status": status, "step": step, **facts})


def note_on_run(model: Path) -> str:
    """What a user of a saved model should know of the run that it is of; "" if that is finished, or says nothing.

    Args:
        model: the folder of the model, which need not be in a run folder. Older runs do not say how far they are.
    """
    folder = model.absolute().parents[1]
    if model.absolute().parent != folder / BEST.parent or not (folder / RECORD).is_file():
        return ""
    try:
        record = read_object(folder / RECORD)
    except UserError:  # the model can be used without it
        return ""
    step, model_is = record.get("step"), "this is its best model so far"
    if record.get("status") == "stopped":
        return f"the run was stopped at step {step} by {record.get('signal')}; {model_is}"
    if record.get("status") == "failed":
        return f"the run failed at step {step}; {model_is}"
    if record.get("status") == "running":
        return f"the run is not finished: it is still at work, or it was killed after step {step}; {model_is}"
    return ""
