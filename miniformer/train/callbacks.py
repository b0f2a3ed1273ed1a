"""What a run does beside training: it keeps the best model and the last state, and stops cleanly when told to."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.plugins.io import TorchCheckpointIO

from miniformer.checkpoint.atomic import write_file
from miniformer.checkpoint.store import BEST, write_model
from miniformer.kernel.errors import Interrupted, RunError, SpecError, did_you_mean

from .module import MiniFormerLitModule
from .train_config import TrainConfig

LAST = Path("checkpoints") / "last.ckpt"
AGREE = 16
"""Batches after which several processes ask each other whether one was told to stop; to ask is to wait for the device."""


class RunCallback(Callback):
    """Knows the run folder, which the first process of a run tells the others.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.run = trainer.strategy.broadcast(self.run)


class BestModel(RunCallback):
    """Writes the model to the run folder whenever a measurement beats those before; what is no finite number beats none.

    Args:
        run: the run folder.
        metric: what is compared.
        smaller: the smaller it is, the better.
        config: what `config.json` says.
        tokenizer: text of `tokenizer.json`; None: there is none.
    """

    def __init__(self, run: Path, metric: str, smaller: bool, config: dict[str, Any], tokenizer: str | None) -> None:
        super().__init__(run)
        self.metric, self.smaller, self.config, self.tokenizer = metric, smaller, config, tokenizer
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
        if math.isfinite(values[self.metric]) and (not self.best or sign * values[self.metric] < sign * self.best[self.metric]):
            self.best = {**values, "step": float(trainer.global_step)}
            self.write(trainer, module)

    def write(self, trainer: pl.Trainer, module: Any) -> None:
        """Make the weights as they are the run's model."""
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            kept = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
            write_model(self.run / BEST, kept, self.config, self.tokenizer)
            module.hooks.hook.checkpoint_saved(folder=self.run / BEST)
        trainer.strategy.barrier()  # all of them read it at the end


class LastState(RunCallback):
    """Writes what is needed to go on, after each measurement and at the end."""

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.run / LAST)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.save_checkpoint(self.run / LAST)


class StopOnSignal(RunCallback):
    """Saves and stops at the end of the batch in which Ctrl-C or SIGTERM came; a second one stops at once.

    Lightning's own handling ends a run that got SIGTERM with exit code 0 and saves nothing. The handler here only notes
    the signal; the work is done by the loop, in training and in validation alike. Several processes stop at the same batch,
    on which they agree now and then. Where no model was kept yet, the weights as they are become the run's model.

    Args:
        run: the run folder.
        best: what keeps the best model.
    """

    def __init__(self, run: Path, best: BestModel) -> None:
        super().__init__(run)
        self.signum, self.best = 0, best
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # signals are Python's main thread's alone
            return
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _stop(self, trainer: pl.Trainer, module: Any) -> None:
        if self.signum:
            trainer.save_checkpoint(self.run / LAST)
            name = "Ctrl-C" if self.signum == signal.SIGINT else "SIGTERM"
            said = f"{name}: stopped at step {trainer.global_step}; its state is in {self.run / LAST}"
            if not self.best.best:
                self.best.write(trainer, module)
                said += f"; no model was measured and kept before, so the one of this step is the run's, in {self.run / BEST}"
            raise Interrupted(said, self.signum)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if trainer.world_size > 1:
            if batch_index % AGREE:
                return
            mine = torch.tensor(self.signum, device=trainer.strategy.root_device)
            self.signum = int(trainer.strategy.reduce(mine, reduce_op="max"))
        self._stop(trainer, module)

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.state.fn == "fit" and trainer.world_size == 1:  # of several, some may have a batch more than others
            self._stop(trainer, module)

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, complete or absent, and an error where Lightning swallows one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_file(Path(path), lambda target: torch.save(checkpoint, target))


def smaller_is_better(config: TrainConfig, module: MiniFormerLitModule) -> bool:
    """Which way the checkpoint metric is better, as the metric itself says; an extension's is better the larger it is.

    Raises:
        SpecError: nothing of that name is measured, and no extension is active that could add it.
    """
    measured = {f"val_{name}": metric for name, metric in module.measures().items()}
    if config.checkpoint_metric not in measured and not config.extensions:
        raise SpecError(f"checkpoint_metric {config.checkpoint_metric!r} is not measured"
                        f"{did_you_mean(config.checkpoint_metric, measured)}; measured are {', '.join(sorted(measured))}")
    metric = measured.get(config.checkpoint_metric)
    return metric is not None and metric.higher_is_better is False


def callbacks_for(config: TrainConfig, module: MiniFormerLitModule, best: BestModel) -> list[Any]:
    """What may end a run and what extensions add, then what saves its state, so that the state has all that they did."""
    callbacks: list[Any] = []
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.checkpoint_metric, patience=config.early_stopping_patience,
                                       mode="min" if best.smaller else "max"))
    for added in module.hooks.hook.callbacks():
        callbacks += added
    return [*callbacks, LastState(best.run), StopOnSignal(best.run, best)]
