"""How a run shows its progress: a bar on a terminal, elsewhere a line for each tenth of the steps."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from miniformer.data.prepare import PreparedData, token_counts

from .train_config import TrainConfig

LINES = 10
"""Lines that a run prints where there is no terminal."""
PAUSE = 0.1
"""Least seconds between two updates of a terminal's bar: each reads the loss, and so waits for the device."""


def say_data(console: Console, data: PreparedData, from_cache: bool) -> None:
    """Print how much there is to learn from."""
    counts = token_counts(data.train.examples)
    if data.task.input_dim is None:
        unit, inputs = "tokens", f"vocabulary: {data.tokenizer.vocab_size:,}"
    else:
        unit, inputs = "steps", f"features: {data.task.input_dim}"
    if labels := getattr(data.task, "labels", ()):
        inputs += f"; labels: {len(labels):,}"
    source = "; from the cache" if from_cache else ""
    console.print(f"{counts['examples']:,} examples, {counts['tokens']:,} {unit}; held out: "
                  f"{len(data.val.examples):,} examples; {inputs}{source}", highlight=False)


def say_model(console: Console, model: nn.Module, config: TrainConfig) -> None:
    """Print how large the model is, and in which precision it is trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"model: {parameters:,} parameters, precision {config.precision}", highlight=False)


def say_steps(console: Console, config: TrainConfig, processes: int) -> None:
    """Print what several processes make of the batch size, and that compiling takes a while before the first step."""
    if processes > 1:
        batches = config.accumulate_grad_batches
        of_each = "" if batches == 1 else f" of {batches} batches each"
        console.print(f"{processes} processes, each with its own batches of batch_size = {config.batch_size}: a step{of_each} "
                      f"has {processes * batches * config.batch_size:,} rows", highlight=False)
    if config.compile:
        console.print("compiling the layers, in the first step and the first measurement: half a minute to a few minutes",
                      highlight=False)


class RunProgress(ProgressBar):
    """Steps done, loss, tokens per second and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"),
                            console=console, disable=not console.is_terminal)
        self.task: TaskID | None = None
        self.total = self.printed = 0
        self.mean: Any = None
        self.shown = self.started = 0.0
        self.first_step = self.first_tokens = 0
        """Steps and tokens that were done before this `fit` began, whose time is not in the rates."""

    def disable(self) -> None:
        """Do nothing: Lightning calls this in all processes but the first, where the console is quiet anyway."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.total = int(trainer.estimated_stepping_batches)
        if self.task is None:
            self.task = self.bar.add_task("training", total=self.total, facts="")
        self.bar.start()
        self.first_step, self.first_tokens = trainer.global_step, module.tokens
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.loss is not None:
            self.mean = module.loss if self.mean is None else 0.95 * self.mean + 0.05 * module.loss
        step, now = trainer.global_step, time.monotonic()
        lines = step * LINES // self.total
        if (now - self.shown < PAUSE and step < self.total) if self.console.is_terminal else lines <= self.printed:
            return
        self.shown, self.printed = now, lines
        spent = now - self.started
        tokens = (module.tokens - self.first_tokens) * trainer.world_size  # processes have about as many each
        recorded = "".join(f"  {name} {float(value):.3g}" for name, value in module.recorded().items())
        facts = f"loss {float(self.mean):.3f}{recorded}  {tokens / spent:,.0f} tokens/s"
        if self.console.is_terminal and self.task is not None:
            self.bar.update(self.task, completed=step, facts=facts)
        elif not self.console.is_terminal:
            left = spent / max(1, step - self.first_step) * (self.total - step)
            self.console.print(f"step {step}/{self.total}  {facts}  {left:.0f} s left", highlight=False)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.task is not None:
            self.bar.update(self.task, description="measuring")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.task is not None:
            self.bar.update(self.task, description="training")

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.bar.stop()
