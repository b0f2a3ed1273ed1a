"""The report that `miniformer train` prints at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from miniformer.checkpoint.file_names import as_argument
from miniformer.cli.shared.tables import show
from miniformer.data.stdlib import NAME
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.kernel.errors import UserError
from miniformer.train.trainer import RunResult

SAMPLE = 60
"""Longest sample at the end of a run, in tokens."""
LOOKED_AT = 20
"""Held-out sources among which one with words is looked for."""


def report(console: Any, result: RunResult) -> None:
    """Print the metrics of the best model beside those of baselines, a sample, the run's folder, and a command to try next."""
    for table in _metrics(result):
        console.print()
        show(console, table)
    run = shlex.quote(as_argument(result.folder))
    if result.module.model.generates:
        prompt, text = _sample_or_why_not(result)
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


def _metrics(result: RunResult) -> Iterator[Table]:
    """A table for the held-out records, and one for the test file if there is one."""
    data, step = result.data, f"best model of step {result.metrics['step']:.0f}"
    held_out = "the training records themselves" if data.val is data.train else "held-out records"
    yield _table(f"{held_out} ({len(data.val.records)}), {step}", _with_prefix(result.metrics, "val_"), result.baselines)
    if data.test is not None:
        title = f"test file ({len(data.test.records)}), {step}"
        yield _table(title, _with_prefix(result.metrics, "test_"), result.test_baselines)


def _table(title: str, metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for the model and one for each baseline, all measured on the same records; a column for each metric."""
    rows = [["", *(name.replace("_", " ") for name in metrics)], ["this model", *map(_number, metrics.values())]]
    for name, values in baselines.items():
        rows.append([name, *(_number(values[metric]) if metric in values else "" for metric in metrics)])
    table = Table(title=title, title_justify="left")
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


def _sample_or_why_not(result: RunResult) -> tuple[str, str]:
    """A prompt to try, and a sample, or why there is none: what follows it in the report is shown all the same."""
    try:
        return _sample(result)
    except Exception as error:
        return "TEXT", f"(none could be made: {str(error) or type(error).__name__})"


def _sample(result: RunResult) -> tuple[str, str]:
    """A prompt to try, and a text with what the model wrote: its continuation, or its answer to a held-out source."""
    tokenizer, model = result.data.tokenizer, result.module.model
    if model.has_source:
        source, question = _question(result)
        engine = Engine(model, tokenizer, encode=lambda _: list(source))  # the whole source, of which `question` is the end
        (answer,) = engine.generate([question], Sampling(0.0), max_new_tokens=SAMPLE)
        return question, f"{question}\n-> {answer.text}"
    prompt = "def " if result.module.config.train_path == NAME else _first_words(result)
    room = max(1, model.config.max_seq_len - len(tokenizer.encode(prompt)))  # further on, it may write worse
    (answer,) = Engine(model, tokenizer).generate([prompt], Sampling(0.7, top_p=0.9), max_new_tokens=min(SAMPLE, room),
                                                  seed=result.module.config.seed, truncate=True)
    return prompt, prompt + answer.text


def _question(result: RunResult) -> tuple[Sequence[int] | torch.Tensor, str]:
    """The first held-out source that has words, or the first of all, and the end of it as text."""
    sources = [example.source for example in result.data.val.examples[:LOOKED_AT] if example.source is not None]
    questions = [(source, " ".join(result.data.tokenizer.decode(source).split())[-200:]) for source in sources]
    return next((pair for pair in questions if pair[1]), questions[0])


def _first_words(result: RunResult) -> str:
    """The first words of the first held-out text that has any, else of a training text; records may be without."""
    for split in (result.data.val, result.data.train):
        for record in split.records:
            for text in result.data.task.texts(record):
                if words := text.split()[:2]:
                    return " ".join(words)
    raise UserError("no text has a word in it")
