"""How a run shows that it goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 10
"""Lines that a run writes where there is no terminal."""
PAUSE = 0.1
"""Least seconds between updates of a terminal's bar, each of which waits for the device."""


class RunProgress(ProgressBar):
    """Steps done, loss, tokens per second and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"),
                            console=console, disable=not console.is_terminal)
        self.task, self.total, self.printed = None, 0, 0
        self.mean: Any = None
        self.started = self.shown = 0.0

    def disable(self) -> None:
        """Asked of all processes but the first, whose console is quiet."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.total = int(trainer.estimated_stepping_batches)
        self.task = self.bar.add_task("training", total=self.total, facts="")  # type: ignore[assignment]
        self.bar.start()
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.loss is not None:
            self.mean = module.loss if self.mean is None else 0.95 * self.mean + 0.05 * module.loss
        step, now = trainer.global_step, time.monotonic()
        lines = step * LINES // self.total
        if (now - self.shown < PAUSE and step < self.total) if self.console.is_terminal else lines <= self.printed:
            return
        self.shown, self.printed = now, lines
        tokens = module.tokens * trainer.world_size  # processes have about as many each
        facts = f"loss {float(self.mean):.3f}  {tokens / (now - self.started):,.0f} tokens/s"
        if self.console.is_terminal and self.task is not None:
            self.bar.update(self.task, completed=step, facts=facts)
        elif not self.console.is_terminal:
            left = (now - self.started) / step * (self.total - step)
            self.console.print(f"step {step}/{self.total}  {facts}  {left:.0f} s left", highlight=False)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.task is not None:
            self.bar.update(self.task, description="measuring")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.task is not None:
            self.bar.update(self.task, description="training")

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.bar.stop()
