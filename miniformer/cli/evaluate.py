"""`miniformer evaluate RUN --data FILE`: the metrics of a trained model on records whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.cli.shared.output import ResultCommand, say

if TYPE_CHECKING:
    from pydantic import BaseModel

    from miniformer.data.jsonl import Line


@click.command("evaluate", cls=ResultCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "source", required=True, type=click.Path(path_type=Path),
              help="JSONL file with the task's records, labels included; - for standard input.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows in a batch.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(run: Path, source: Path, batch_size: int, as_json: bool) -> None:
    """Measure a trained model on the records of a file.

    Shows the loss and all metrics of its task. The file may be of any length. RUN is a run folder, or a folder with a
    saved model.
    """
    saved = read_saved(run, source)

    from miniformer.cli.shared.progress import reading
    from miniformer.inference.evaluate import evaluate
    from miniformer.tasks.metrics import finite

    trained = load_for_use(saved)
    count = 0

    def counted(line: Line) -> None:
        nonlocal count
        count += 1
        advance(line)

    with reading(source, "evaluating") as advance:
        metrics = evaluate(trained, _located(source, trained.task.Record, counted), batch_size=batch_size)
    if as_json:
        say(json.dumps({"records": count, **finite(metrics)}))
        return
    width = max(map(len, ["records", *metrics]))
    say(f"{'records'.ljust(width)}  {count:,}")
    for name, value in metrics.items():
        say(f"{name.replace('_', ' ').ljust(width)}  {value:.4g}")


def _located(source: Path, record: type[BaseModel], read: Callable[[Line], None]) -> Iterator[tuple[str, object]]:
    from miniformer.data.jsonl import read_lines

    for line in read_lines(source, record):
        read(line)
        yield line.where, line.record
