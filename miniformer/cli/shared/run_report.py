"""The report that `miniformer train` prints at its end."""

from __future__ import annotations

import shlex
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from miniformer.cli.shared.tables import show
from miniformer.data.stdlib import NAME
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.train.trainer import RunResult

SAMPLE = 60
"""Longest sample at the end of a run, in tokens."""


def report(console: Any, result: RunResult) -> None:
    """Print the metrics of the best model beside those of baselines, a sample, the run's folder, and a command to try next."""
    console.print()
    show(console, _metrics(result))
    run = shlex.quote(str(result.folder))
    if result.module.model.generates:
        prompt, text = _sample(result)
        console.print("\nsample:", highlight=False)
        console.print(text, markup=False, highlight=False)
        next_command = f"miniformer generate {run} --prompt {shlex.quote(prompt)}"
    else:
        next_command = f"miniformer predict {run} --input FILE.jsonl"
    console.print(f"\nrun folder: {result.folder}", highlight=False, markup=False)
    console.print(f"next: {next_command}", highlight=False, markup=False)


def threads() -> str:
    """What a run says first: how many threads it computes with, and how to change that."""
    return f"threads: {torch.get_num_threads()}; the environment variable OMP_NUM_THREADS sets how many"


def _metrics(result: RunResult) -> Table:
    """A row for the model, one for the test file if there is one, and one for each baseline; a column for each metric."""
    held_out, test = _with_prefix(result.metrics, "val_"), _with_prefix(result.metrics, "test_")
    rows = [["", *(name.replace("_", " ") for name in held_out)], ["this model", *map(_number, held_out.values())]]
    if test:
        rows.append(["on the test file", *map(_number, test.values())])
    for name, values in result.baselines.items():
        rows.append([name, *(_number(values[metric]) if metric in values else "" for metric in held_out)])
    table = Table(title=f"held-out records ({len(result.data.val.records)}), best model of step "
                        f"{result.metrics['step']:.0f}", title_justify="left")
    for place, column in enumerate(zip(*rows, strict=True)):
        # as wide as the longest word, since a narrow terminal would cut words and numbers
        width = max(len(word) for cell in column for word in cell.split())
        table.add_column(column[0], justify="right" if place else "left", min_width=width)
    for place, row in enumerate(rows[1:]):
        table.add_row(*map(Text, row), style="" if place else "bold")
    return table


def _with_prefix(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _number(value: float) -> str:
    return f"{value:.4g}"


def _sample(result: RunResult) -> tuple[str, str]:
    """A prompt to try, and a text with what the model wrote: its continuation, or its answer to a held-out source."""
    tokenizer, model = result.data.tokenizer, result.module.model
    if model.has_source:
        source = result.data.val.examples[0].source
        assert source is not None
        question = " ".join(tokenizer.decode(source).split())[-200:]
        engine = Engine(model, tokenizer, encode=lambda _: list(source))  # the whole source, of which `question` is the end
        (answer,) = engine.generate([question], Sampling(0.0), max_new_tokens=SAMPLE)
        return question, f"{question}\n-> {answer.text}"
    held_out = next(result.data.task.texts(result.data.val.records[0]))
    prompt = "def " if result.module.config.train_path == NAME else " ".join(held_out.split()[:2])
    (answer,) = Engine(model, tokenizer).generate([prompt], Sampling(0.7, top_p=0.9), max_new_tokens=SAMPLE,
                                                  seed=result.module.config.seed, truncate=True)
    return prompt, prompt + answer.text
