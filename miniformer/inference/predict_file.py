"""A JSONL file with predictions: each line of the input as it is, with a field `prediction` added at its end.

Lines are written whole and one by one, so that the output of an interrupted command can be used, and continued.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from miniformer.checkpoint.can_make import check_can_make
from miniformer.data.jsonl import Line, read_lines
from miniformer.kernel.errors import DataError, Interrupted, RunError, UserError

from .load import Trained
from .predict import input_schema, predictions

STDOUT = Path("-")
FIELD = "prediction"


def predict_file(trained: Trained, source: Path, output: Path = STDOUT, *, resume: bool = False, batch_size: int = 32,
                 written: Callable[[Line], None] = lambda line: None, stdout: BinaryIO | None = None) -> int:
    """Write the lines of `source` with their predictions to `output`; return how many were written.

    Args:
        trained: the model with its task.
        source: a JSONL file with the task's input fields, and any others; `-`: standard input.
        output: a file that does not exist yet; `-`: standard output.
        resume: `output` may exist; its lines are kept, and the predictions after them are added.
        batch_size: rows that go through the model together.
        written: called with each line of the input once it is written.
        stdout: standard output, if it is another than `sys.stdout`.

    Raises:
        UserError: a line of the input is wrong, the output cannot be written there, or it exists and belongs to another input.
        RunError: the output cannot be written, or a prediction is not finite.
        Interrupted: by Ctrl-C; all lines written so far are whole.
    """
    lines = _without_predictions(read_lines(source, input_schema(trained.task)))
    check_output(output, resume=resume)
    if output == STDOUT:
        return _write(trained, lines, stdout or sys.stdout.buffer, "", batch_size, written)
    size = _pass_over(lines, output, source) if output.exists() else 0
    try:
        with output.open("ab") as file:
            file.truncate(size)
            how_to_continue = f"; {output} is whole up to there, and --resume continues it"
            return _write(trained, lines, file, how_to_continue, batch_size, written)
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror or error}") from error


def check_output(output: Path, *, resume: bool = False) -> None:
    """Refuse, before anything is predicted, an output that cannot be written or continued.

    Raises:
        UserError: a directory, a file that exists already, a folder that does not exist, or a name that no file can have.
    """
    if output == STDOUT:
        if resume:
            raise UserError("--resume continues a file; give --output too")
        return
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


def _write(trained: Trained, lines: Iterator[Line], file: BinaryIO, how_to_continue: str, batch_size: int,
           written: Callable[[Line], None]) -> int:
    """Write every line with its prediction; `how_to_continue` ends messages about a file that can be continued, else empty."""
    ahead: deque[Line] = deque()

    def located() -> Iterator[tuple[str, object]]:
        for line in lines:
            ahead.append(line)
            yield line.where, line.record

    count, whole = 0, os.fstat(file.fileno()).st_size if how_to_continue else 0
    try:
        for prediction in predictions(trained, located(), batch_size=batch_size):
            line = ahead.popleft()
            size = file.write(_completed(line, prediction))
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


def _without_predictions(lines: Iterator[Line]) -> Iterator[Line]:
    for line in lines:
        if FIELD in line.data:
            raise DataError(f"{line.where}: it has a field {FIELD!r} already, the name of the field to be added")
        yield line


def _pass_over(lines: Iterator[Line], output: Path, source: Path) -> int:
    """Skip the lines that `output` has predictions for; return how many bytes of `output` are whole lines.

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
            line = next(lines, None)
            if line is None:
                raise UserError(f"{output}:{number}: {source} has no line for this one; this output belongs to another input")
            if not raw.startswith(_opening(line).encode()):
                raise UserError(f"{output}:{number}: not a prediction for {line.where}; this output belongs to another input")
            size += len(raw)
    return size
