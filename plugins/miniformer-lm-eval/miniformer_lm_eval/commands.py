"""`miniformer lm-eval RUN --tasks NAME`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from miniformer.kernel.errors import UserError, did_you_mean

REPORTED = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


@click.command("lm-eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", "names", required=True, multiple=True, metavar="NAME[,NAME…]",
              help="Tasks, tags or groups of the harness; * matches any characters. May be repeated.")
@click.option("--include-path", type=click.Path(exists=True, file_okay=False), help="A folder with more tasks, as YAML files.")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many records of each task, from the first.")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Solved examples in each prompt.  [default: the task's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Rows at a time.")
@click.option("--device", help="Where the model runs, such as cuda:1.  [default: a GPU if there is one]")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def lm_eval(run: Path, names: tuple[str, ...], include_path: str | None, limit: int | None, num_fewshot: int | None,
            batch_size: int, device: str | None, as_json: bool) -> None:
    """Measure a model that writes on tasks of the LM Evaluation Harness.

    RUN is a run folder, or a folder with a saved model. The harness downloads the data of its own tasks.
    """
    from miniformer.checkpoint.store import read_model

    read_model(run)  # before torch is imported, so that a wrong folder is reported at once
    task_names = [name for option in names for name in option.split(",") if name]
    if not task_names:
        raise UserError("--tasks: expected the name of a task; found nothing")

    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from .model import MiniformerLM

    manager = TaskManager(include_path=include_path)
    tasks = _matching(manager, task_names)
    model = MiniformerLM(run, batch_size=batch_size, device=device)
    for note in model.pipeline.notes:
        click.echo(f"note: {note}", err=True)
    try:
        results = simple_evaluate(model=model, tasks=tasks, num_fewshot=num_fewshot, batch_size=batch_size, limit=limit,
                                  log_samples=False, task_manager=manager)
    except (OSError, ImportError, ValueError, DatasetsError) as error:  # what data, packages and settings of tasks may raise
        raise UserError(f"{', '.join(tasks)}: {error}") from error
    if as_json:
        click.echo(json.dumps({name: results[name] for name in REPORTED if name in results}, default=str))
        return
    click.echo(make_table(results))
    if results.get("groups"):
        click.echo(make_table(results, "groups"))


def _matching(manager: Any, names: list[str]) -> list[str]:
    """The tasks that match the names and patterns."""
    tasks: list[str] = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches:
            raise UserError(f"there is no task {name!r}{did_you_mean(name, manager.all_tasks)}; `lm-eval ls tasks` lists those "
                            "of the harness, and --include-path adds others")
        tasks += matches
    return tasks
