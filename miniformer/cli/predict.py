"""`miniformer predict RUN --input FILE`: the records of a file, each with the prediction of a trained model."""

from __future__ import annotations

import time
from pathlib import Path

import click

from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.cli.shared.output import ResultCommand, result_is_in_a_file, result_stream, say


@click.command("predict", cls=ResultCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--input", "source", required=True, type=click.Path(path_type=Path),
              help="JSONL file with records of the task, whose labels may be missing; - for standard input.")
@click.option("--output", default="-", show_default=True, type=click.Path(path_type=Path),
              help="JSONL file to write: every field of the input, and `prediction`; - for standard output.")
@click.option("--resume", is_flag=True, help="Continue an output that an interrupted call left.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows in a batch.")
def command(run: Path, source: Path, output: Path, resume: bool, batch_size: int) -> None:
    """Add a trained model's predictions to the records of a file.

    The file may be of any length. A record that cannot be predicted is reported and left out; the others are written, and the
    command ends with exit code 2. RUN is a run folder, or a folder with a saved model.
    """
    saved = read_saved(run, source)

    from miniformer.cli.shared.progress import reading
    from miniformer.inference.predict_file import STDOUT, check_output, predict_file

    check_output(output, resume=resume)
    trained = load_for_use(saved)
    if output != STDOUT:
        result_is_in_a_file()
    started = time.monotonic()
    with reading(source, "predicting", hidden=output == STDOUT) as advance:
        count = predict_file(trained, source, output, resume=resume, batch_size=batch_size, written=advance,
                             refused=lambda error: click.echo(f"left out: {error}", err=True),
                             stdout=result_stream().buffer)
    seconds = time.monotonic() - started
    if output == STDOUT:
        click.echo(f"predictions: {count:,}, {count / seconds:,.0f} a second", err=True)
    else:
        say(f"predictions: {count:,}, {count / seconds:,.0f} a second; {output}")
