"""Training in pieces: Lightning's loops, made to stop between two optimizer steps and to continue there in the next `fit`.

Lightning's own ways to stop early (`max_steps`, `should_stop`) also end the epoch: callbacks are called as if it were over, an
extra measurement may be made, and the next `fit` begins another epoch with new optimizers. The loops are private classes of
Lightning 2, and this file is the only one that uses them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop


class PausableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which can be left before the last one.

    Attributes:
        pause_at: number of optimizer steps, counted from the start of training, after which it stops; None: it does not.
        mid_epoch: the last `fit` left an epoch unfinished, which the next one continues.
    """

    pause_at: int | None = None
    mid_epoch = False

    @property
    def must_pause(self) -> bool:
        """Whether the step to stop at has been reached."""
        return self.pause_at is not None and self.global_step >= self.pause_at

    @property
    def done(self) -> bool:
        return super().done or self.must_pause

    def reset(self) -> None:
        if not self.mid_epoch:  # otherwise the counters of batches stay as they were left
            super().reset()

    def leave(self) -> None:
        """Note whether the epoch is left unfinished; `super().done` is true at its last batch and at an early stop."""
        self.mid_epoch = self.must_pause and not super().done


class PausableFitLoop(_FitLoop):
    """Lightning's loop over epochs, which can be left between two optimizer steps.

    To callbacks each piece is a `fit` with its own `on_train_start` and `on_train_end`, but an epoch has one start and one
    end, however many pieces it is trained in. Lightning makes new optimizers and schedulers for each `fit`; they get the
    state in which the piece before left theirs.

    Args:
        trainer: whose loop this replaces, before its first `fit`.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer, trainer.min_epochs, trainer.max_epochs)
        self.pausable = self.epoch_loop = PausableEpochLoop(trainer, trainer.min_steps, trainer.max_steps)
        self.optimization: dict[str, list[Any]] = {}

    @property
    def position(self) -> tuple[int, int]:
        """The epoch in which the next `fit` starts, and how many of its batches are done."""
        batches = self.pausable.batch_progress.current.completed if self.pausable.mid_epoch else 0
        return self.epoch_progress.current.completed, batches

    @property
    def done(self) -> bool:
        return self.ended or self.pausable.must_pause

    @property
    def ended(self) -> bool:
        """Whether all epochs or steps are done, or a callback stopped training, so that nothing is left to continue."""
        return super().done

    def on_run_start(self) -> None:
        if self.optimization:
            for optimizer, state in zip(self.trainer.optimizers, self.optimization["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            for config, state in zip(self.trainer.lr_scheduler_configs, self.optimization["schedulers"], strict=True):
                config.scheduler.load_state_dict(state)
        super().on_run_start()

    def on_run_end(self) -> None:
        super().on_run_end()
        self.optimization = {
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
            "schedulers": [copy.copy(config.scheduler.state_dict()) for config in self.trainer.lr_scheduler_configs]}

    def on_advance_start(self) -> None:
        if not self.pausable.mid_epoch:  # an epoch that is continued has had its start
            super().on_advance_start()

    def on_advance_end(self) -> None:
        self.pausable.leave()
        if not self.pausable.mid_epoch:
            super().on_advance_end()
