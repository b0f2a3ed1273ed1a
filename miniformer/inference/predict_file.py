"""A JSONL file with predictions: each line of the input as it is, with a field `prediction` added at its end.

Lines are written whole and one by one, so that the output of an interrupted command can be used, and continued. A record that
nothing can be predicted from has no line there; it is reported, and the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from miniformer.checkpoint.atomic import reported
from miniformer.checkpoint.can_make import check_can_make
from miniformer.checkpoint.file_names import check_length
from miniformer.data.jsonl import Line, read_each
from miniformer.kernel.errors import DataError, Interrupted, RunError, UserError

from .load import Trained
from .predict import example_of, input_schema, outcomes

STDOUT = Path("-")
FIELD = "prediction"
LISTED = 10
"""The most records that an error lists."""


def predict_file(trained: Trained, source: Path, output: Path = STDOUT, *, resume: bool = False, batch_size: int = 32,
                 written: Callable[[Line], None] = lambda line: None,
                 refused: Callable[[DataError], None] | None = None, stdout: BinaryIO | None = None) -> int:
    """Write the lines of `source` with their predictions to `output`; return how many were written.

    Args:
        trained: the model with its task.
        source: a JSONL file with the task's input fields, and any others; `-`: standard input.
        output: a file that does not exist yet; `-`: standard output.
        resume: `output` may exist; its lines are kept, and the predictions after them are added.
        batch_size: rows that go through the model together.
        written: called with each line of the input once it is written.
        refused: called with the error of each record that is not predicted; without it, the error at the end lists them.
        stdout: standard output, if it is another than `sys.stdout`.

    Raises:
        DataError: at the end, if records were not predicted; all the others are written.
        UserError: the output cannot be written there, or it exists and belongs to another input.
        WriteError: the output cannot be written.
        RunError: a prediction is not finite.
        Interrupted: by Ctrl-C; all lines written so far are whole.
    """
    lines = _without_predictions(read_each(source, input_schema(trained.task)))
    check_output(output, resume=resume)
    without = _Refused(refused)
    if output == STDOUT:
        return without.checked(_write(trained, lines, stdout or sys.stdout.buffer, "", batch_size, written, without))
    size = _pass_over(lines, output, source, partial(_fault, trained), without) if output.exists() else 0
    with reported(output), output.open("ab") as file:
        file.truncate(size)
        how_to_continue = f"; {output} is whole up to there, and --resume continues it"
        return without.checked(_write(trained, lines, file, how_to_continue, batch_size, written, without))


class _Refused:
    """The records that are not predicted: their number, and the first errors unless someone else reports them."""

    def __init__(self, report: Callable[[DataError], None] | None) -> None:
        self.report, self.count = report, 0
        self.listed: list[str] = []

    def __call__(self, error: DataError) -> None:
        self.count += 1
        if self.report is not None:
            self.report(error)
        elif len(self.listed) < LISTED:
            self.listed.append(str(error))

    def checked(self, written: int) -> int:
        """The number of predictions, if every record has one.

        Raises:
            DataError: records were not predicted.
        """
        if not self.count:
            return written
        total = f"records that were not predicted: {self.count:,}; predictions written: {written:,}"
        raise DataError("\n  ".join([*self.listed, total]))


def check_output(output: Path, *, resume: bool = False) -> None:
    """Refuse, before anything is predicted, an output that cannot be written or continued.

    Raises:
        UserError: a directory, a file that exists already, a folder that does not exist, or a name that no file can have.
    """
    if output == STDOUT:
        if resume:
            raise UserError("--resume continues a file; give --output too")
        return
    check_length(output, "--output")
    try:
        if output.exists() and not output.is_file():
            what = "a directory" if output.is_dir() else "a device or a pipe"
            raise UserError(f"{output}: {what}; expected a file to write")
        if output.exists() and not resume:
            raise UserError(f"{output} exists already; to continue it: --resume; or choose another --output")
        if not output.parent.is_dir():
            raise UserError(f"{output.parent}: " + ("a file; expected a folder" if output.parent.exists() else
                                                    "no such folder; make it, or choose another --output"))
        check_can_make(output, "--output")
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from None


def _raised(error: DataError) -> None:
    raise error


def _write(trained: Trained, lines: Iterator[Line | DataError], file: BinaryIO, how_to_continue: str, batch_size: int,
           written: Callable[[Line], None], refused: Callable[[DataError], None] = _raised) -> int:
    """Write every line with its prediction; `how_to_continue` ends messages about a file that can be continued, else empty."""
    ahead: deque[Line | DataError] = deque()

    def located() -> Iterator[tuple[str, object]]:
        for line in lines:
            ahead.append(line)
            yield ("", line) if isinstance(line, DataError) else (line.where, line.record)

    count, whole = 0, os.fstat(file.fileno()).st_size if how_to_continue else 0
    try:
        for outcome in outcomes(trained, located(), batch_size=batch_size):
            line = ahead.popleft()
            if isinstance(outcome, DataError):
                refused(outcome)
                continue
            assert isinstance(line, Line), "of a line that could not be read, the outcome is the error"
            size = file.write(_completed(line, outcome))
            file.flush()
            count, whole = count + 1, whole + size
            written(line)
    except KeyboardInterrupt:
        if how_to_continue:
            file.truncate(whole)
        raise Interrupted(f"Ctrl-C: predictions written: {count:,}{how_to_continue}", signal.SIGINT) from None
    except DataError as error:
        raise DataError(f"{error}\n  predictions written before that: {count:,}{how_to_continue}") from None
    return count


def _completed(line: Line, prediction: dict[str, object]) -> bytes:
    """The line as it was, to the last digit, with the field added."""
    try:
        text = json.dumps(prediction, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise RunError(f"{line.where}: the prediction is not a finite number: {prediction!r:.80}") from None
    return f"{_opening(line)}{text}}}\n".encode()


def _opening(line: Line) -> str:
    fields = line.text.rstrip()[:-1].rstrip()
    return f'{fields}{", " if line.data else ""}"{FIELD}": '


def _without_predictions(lines: Iterator[Line | DataError]) -> Iterator[Line | DataError]:
    for line in lines:
        if not isinstance(line, DataError) and FIELD in line.data:
            raise DataError(f"{line.where}: it has a field {FIELD!r} already, the name of the field to be added")
        yield line


def _pass_over(lines: Iterator[Line | DataError], output: Path, source: Path,
               fault: Callable[[Line], DataError | None] = lambda line: None,
               refused: Callable[[DataError], None] = _raised) -> int:
    """Skip the lines that `output` has predictions for, and those between them that have a fault.

    Returns how many bytes of `output` are whole lines.

    Raises:
        UserError: `output` does not hold what would be written for those lines.
    """
    size = 0
    try:
        file = output.open("rb")
    except OSError as error:
        raise UserError(f"{output}: cannot be read, to continue it: {error.strerror or error}") from None
    with file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):  # cut short by a killed process; it is written again
                break
            for line in lines:
                if isinstance(line, DataError):
                    refused(line)
                elif raw.startswith(_opening(line).encode()):
                    break
                elif (reason := fault(line)) is not None:
                    refused(reason)
                else:
                    raise UserError(f"{output}:{number}: not a prediction for {line.where}; this output belongs to another "
                                    "input")
            else:
                raise UserError(f"{output}:{number}: {source} has no line for this one; this output belongs to another input")
            size += len(raw)
    return size


def _fault(trained: Trained, line: Line) -> DataError | None:
    """Why nothing can be predicted from a line; None if something can."""
    try:
        example_of(trained, line.where, line.record)
    except DataError as error:
        return error
    return None
