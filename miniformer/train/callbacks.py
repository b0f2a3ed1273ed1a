"""What a run does beside training: it keeps the best model, saves its last state, and stops cleanly at a signal."""

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
from miniformer.checkpoint.record import Record
from miniformer.checkpoint.store import BEST, write_model
from miniformer.kernel.errors import Interrupted, RunError

from .module import MiniFormerLitModule
from .specs import check_measured
from .train_config import TrainConfig

LAST = Path("checkpoints") / "last.ckpt"
AGREE = 16
"""Batches after which several processes ask each other whether one got a signal. Asking waits for the device."""
STOPPING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals after which a run saves its state and stops. Windows has no SIGHUP."""


class RunCallback(Callback):
    """A callback that knows the run folder, in every process: the first one sends its path to the others.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.run = trainer.strategy.broadcast(self.run)


class BestModel(RunCallback):
    """Writes the model to the run folder whenever a measurement beats all before it. NaN and infinity beat nothing.

    Args:
        run: the run folder.
        metric: name of the metric that is compared, such as `val_loss`.
        smaller: a smaller value is the better one.
        config: content of `config.json`.
        tokenizer: text of `tokenizer.json`; None: none is written.

    Attributes:
        best: what the best model reached, and its `step`; empty before the first finite measurement.
        measured_at: the step of the latest measurement; -1: the weights were never measured.
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
        """Save the present weights as the run's best model."""
        tensors = trainer.strategy.lightning_module_state_dict()  # of several processes, all take part in this
        if trainer.is_global_zero:
            weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
            write_model(self.run / BEST, weights, self.config, self.tokenizer)
            module.hooks.hook.checkpoint_saved(folder=self.run / BEST)
        trainer.strategy.barrier()  # every process reads the model at the end of the run


class LastState(RunCallback):
    """Writes `last.ckpt` after each measurement and whenever training stops.

    It is a checkpoint of Lightning: weights, optimizer, scheduler, counters, states of callbacks. `load_from_checkpoint` of
    `MiniFormerLitModule` reads it. No command continues a run from it.

    Args:
        run: the run folder.
        record: its `run.json`, which says of which step the checkpoint is.
    """

    def __init__(self, run: Path, record: Record) -> None:
        super().__init__(run)
        self.record = record

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.run / LAST)
        if self.record.step != trainer.global_step:
            self.record.write("running", trainer.global_step)


class StopOnSignal(RunCallback):
    """Saves and stops at the end of the batch in which Ctrl-C, SIGTERM or SIGHUP came; a second signal stops at once.

    Lightning's own handling ends a run that got SIGTERM with exit code 0 and saves nothing. A terminal that is closed sends
    SIGHUP, which under `nohup` is ignored, and stays so. The handler here only notes the signal, and the loop acts on it after
    a batch of training or measuring. Several processes agree on it now and then, and stop at the same batch. Where no model
    was kept yet, the present weights become the run's best model.

    Args:
        run: the run folder.
        best: the callback that keeps the best model.
    """

    def __init__(self, run: Path, best: BestModel) -> None:
        super().__init__(run)
        self.signum, self.best = 0, best
        self._handlers_before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread set handlers
            return
        for signum in STOPPING:
            if signum != signal.SIGINT and signal.getsignal(signum) is signal.SIG_IGN:
                continue
            self._handlers_before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for each in self._handlers_before:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

    def _stop(self, trainer: pl.Trainer, module: Any) -> None:
        if self.signum:
            trainer.save_checkpoint(self.run / LAST)
            name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
            if self.best.best:
                model = f"the best model so far, of step {self.best.best['step']:.0f}, is in {self.run / BEST}"
            else:  # else the hours before the first measurement would leave no model to use
                self.best.write(trainer, module)
                model = f"no model was measured before, so the one of this step is in {self.run / BEST}"
            raise Interrupted(f"{name}: stopped at step {trainer.global_step}; {model}; weights and optimizer of this step are "
                              f"in {self.run / LAST}, which MiniFormerLitModule.load_from_checkpoint reads (training cannot "
                              "be continued from it)", self.signum)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if trainer.world_size > 1:
            if batch_index % AGREE:
                return
            mine = torch.tensor(self.signum, device=trainer.strategy.root_device)
            self.signum = int(trainer.strategy.reduce(mine, reduce_op="max"))
        self._stop(trainer, module)

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        # several processes may have unequally many batches to measure on, and one that stopped would leave others waiting
        if trainer.state.fn == "fit" and trainer.world_size == 1:
            self._stop(trainer, module)

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        for signum, handler in self._handlers_before.items():
            signal.signal(signum, handler)
        self._handlers_before = {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints so that a file is complete or absent, and raises errors that Lightning would swallow."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_file(Path(path), lambda target: torch.save(checkpoint, target))


def smaller_is_better(config: TrainConfig, module: MiniFormerLitModule) -> bool:
    """Whether a smaller value of the checkpoint metric is the better one, as the metric itself says.

    A metric that an extension adds says nothing of the kind: the larger, the better.

    Raises:
        SpecError: nothing of that name is measured, and no extension is active that could add it.
    """
    measured = {f"val_{name}": metric for name, metric in module.measures().items()}
    if not config.extensions:
        check_measured(config.checkpoint_metric, measured)
    metric = measured.get(config.checkpoint_metric)
    return metric is not None and metric.higher_is_better is False


def callbacks_for(config: TrainConfig, module: MiniFormerLitModule, best: BestModel, record: Record) -> list[Any]:
    """Early stopping, then extensions' callbacks, then what saves the run's state, so that it has all that those did."""
    callbacks: list[Any] = []
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.checkpoint_metric, patience=config.early_stopping_patience,
                                       mode="min" if best.smaller else "max"))
    for added in module.hooks.hook.callbacks():
        callbacks += added
    return [*callbacks, LastState(best.run, record), StopOnSignal(best.run, best)]
