"""What a run does beside training: it keeps the best model and the last state, and stops cleanly when told to."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from miniformer.checkpoint.atomic import write_file
from miniformer.checkpoint.store import BEST, write_model
from miniformer.kernel.errors import Interrupted, RunError

LAST = Path("checkpoints") / "last.ckpt"


class BestModel(Callback):
    """Writes the model to the run folder whenever a measurement beats those before.

    Args:
        run: the run folder.
        metric: what is compared.
        smaller: the smaller it is, the better.
        config: what `config.json` says.
        tokenizer: text of `tokenizer.json`; None: there is none.
    """

    def __init__(self, run: Path, metric: str, smaller: bool, config: dict[str, Any], tokenizer: str | None) -> None:
        self.run, self.metric, self.smaller, self.config, self.tokenizer = run, metric, smaller, config, tokenizer
        self.best: dict[str, float] = {}
        self.measured_at = -1

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        self.measured_at = trainer.global_step
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if self.metric not in values:
            raise RunError(f"checkpoint_metric {self.metric!r} is not measured; measured are {', '.join(sorted(values))}")
        sign = 1 if self.smaller else -1
        if not self.best or sign * values[self.metric] < sign * self.best[self.metric]:
            self.best = {**values, "step": float(trainer.global_step)}
            weights = trainer.strategy.lightning_module_state_dict()
            if trainer.is_global_zero:
                kept = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
                write_model(self.run / BEST, kept, self.config, self.tokenizer)
                module.hooks.hook.checkpoint_saved(folder=self.run / BEST)


class LastState(Callback):
    """Writes what is needed to go on, after each measurement and at the end."""

    def __init__(self, run: Path) -> None:
        self.path = run / LAST

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.save_checkpoint(self.path)


class StopOnSignal(Callback):
    """Saves and stops at the end of the batch in which Ctrl-C or SIGTERM came; a second one stops at once.

    Lightning's own handling ends a run that got SIGTERM with exit code 0 and saves nothing. The handler here only notes
    the signal; the work is done by the loop, in training and in validation alike.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / LAST
        self.signum = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.signum:
            trainer.save_checkpoint(self.path)
            name = "Ctrl-C" if self.signum == signal.SIGINT else "SIGTERM"
            raise Interrupted(f"{name}: stopped at step {trainer.global_step}; its state is in {self.path}", self.signum)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self._stop(trainer)

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, complete or absent, and an error where Lightning swallows one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_file(Path(path), lambda target: torch.save(checkpoint, target))
