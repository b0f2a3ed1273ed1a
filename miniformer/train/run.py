"""`Run`: one training run from its config to its folder, in steps that can be called one by one.

`runs/<experiment>/` holds `run.json` (everything that decides the run, and what it reached), `metrics.csv`,
`checkpoints/best_model/` (the model to use) and `checkpoints/last.ckpt` (weights, optimizer and counters as they were last, in
Lightning's format). It is made only once the data is read and the model is built.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from rich.console import Console
from torch import Tensor

from miniformer.checkpoint.record import Record
from miniformer.checkpoint.store import BEST, TOKENIZER, load_weights, read_model
from miniformer.data.prepare import PreparedData
from miniformer.kernel.errors import RunError, SpecError
from miniformer.kernel.out_of_memory import memory_errors

from .callbacks import BestModel, callbacks_for, smaller_is_better
from .cost import check_room
from .datamodule import MiniFormerDataModule
from .lightning_setup import check_machine, devices_for, lightning_trainer, loggers_for, quiet_lightning
from .loggers import guarded
from .module import MiniFormerLitModule
from .notes import notes_on, say_notes
from .pausing import PausableFitLoop
from .processes import is_first
from .progress import RunProgress, say_data, say_model, say_steps
from .random_state import RandomState
from .run_folder import LESS_MEMORY, describe, errors_name, new_folder, removed
from .run_name import free_folder
from .run_result import RunResult, baselines_of
from .specs import check_metric, check_model, model_class, model_spec, with_data_decisions
from .train_config import TrainConfig


class Run:
    """A training run: `prepare`, `fit` in one or more pieces, `finish`.

    `train(config)` is a run whose `fit` is called once. Call the steps yourself to look at the model or to change its weights
    between pieces of training:

        run = Run(config)
        while not run.ended:
            run.fit(steps=100)
            run.take(averaged(run.weights()))
        result = run.finish()

    However the steps are divided among calls of `fit`, the final weights are the same, on the CPU to the last bit: batches,
    accumulated gradients, learning rates, dropout and the schedule of measurements continue where they stopped, in the middle
    of an epoch too. Each call has some cost: it starts Lightning and its data workers anew and writes `last.ckpt`.

    Args:
        config: the run.
        tokenizer: used instead of the one that the config names, or of one trained on the data.
        console: where progress is shown; None: nowhere.

    Attributes:
        config: the run; once prepared, with what the data and the machine decide filled in.
        data, module: the data and what Lightning trains, once prepared.
        ended: training is over, because the config's steps are done or a callback stopped it.
    """

    data: PreparedData
    module: MiniFormerLitModule

    def __init__(self, config: TrainConfig, tokenizer: Any = None, console: Console | None = None) -> None:
        self.config, self.ended, self._tokenizer_given = config, False, tokenizer is not None
        self._first = is_first()
        self._console = console if console is not None and self._first else Console(quiet=True)
        self._datamodule = MiniFormerDataModule(config, tokenizer)
        self._trainer: pl.Trainer | None = None
        self._result: RunResult | None = None

    def __repr__(self) -> str:
        state = "not prepared" if self._trainer is None else f"{self.folder}, step {self.step}{', ended' if self.ended else ''}"
        return f"{type(self).__name__}({state})"

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return 0 if self._trainer is None else self._trainer.global_step

    @property
    def folder(self) -> Path:
        """The run folder, once prepared."""
        return self._best.run

    def prepare(self) -> None:
        """Read the data, build the model, make the run folder. Every other method does it where it was not done before.

        Raises:
            UserError: the config or the data is wrong; nothing was written.
        """
        if self._trainer is not None:
            return
        if self._first:
            free_folder(self.config)  # refuse a taken name before seconds of reading
        with quiet_lightning(), memory_errors(LESS_MEMORY):
            devices = devices_for(self.config)
            check_machine(self.config)
            check_model(self.config)
            check_metric(self.config)
            pl.seed_everything(self.config.seed, verbose=False)
            self.data = self._datamodule.data
            self.config = with_data_decisions(self.config, self.data)
            say_data(self._console, self.data, self._datamodule.from_cache)
            notes = check_room(self.config, model_class(self.data.task), model_spec(self.config, self.data.task),
                               self._datamodule.batch_tokens)
            self.module = MiniFormerLitModule.for_data(self.config, self.data)
            say_model(self._console, self.module.model, self.config)
            say_steps(self._console, self.config, devices["devices"] * devices["num_nodes"])
            self._trainer = self._new_trainer(devices)
            if self._first:
                batches = self._datamodule.batches_per_epoch(devices["devices"] * devices["num_nodes"])
                say_notes(self._console, [*notes, *notes_on(self.config, self._datamodule.train_rows, batches)])
        self._loop = self._trainer.fit_loop = PausableFitLoop(self._trainer)
        self._random = RandomState.now()

    def _new_trainer(self, devices: Mapping[str, Any]) -> pl.Trainer:
        """Lightning's trainer and, once nothing is left that could be refused, the run folder."""
        smaller = smaller_is_better(self.config, self.module)
        batches = self._datamodule.batches_per_epoch(devices["devices"] * devices["num_nodes"])
        # the other processes learn the folder's name once they are connected
        folder = new_folder(self.config) if self._first else Path(self.config.work_dir)
        try:
            return self._trainer_in(folder, batches, smaller, devices)
        except BaseException:
            if self._first:
                removed(folder)
            raise

    def _trainer_in(self, folder: Path, batches: int, smaller: bool, devices: Mapping[str, Any]) -> pl.Trainer:
        """Lightning's trainer, which writes into a new folder, and the first `run.json`."""
        loggers = guarded(loggers_for(self.config, folder))
        model, task = self.module.model, self.config.to_data()["task"]
        spec = {"model": model.config.model_dump(mode="json"), "task": task}
        config = self.config
        if self._tokenizer_given:  # to make the run again, the one that is saved with its model
            config = config.with_fields(tokenizer=folder / BEST / TOKENIZER)
        self._record = Record(folder, describe(spec, config, self.data), self._first)
        self._record.write("running", 0)
        saved = {"assembly": model.assembly, "extensions": self.config.extensions, **spec}
        tokenizer = self.data.tokenizer.to_json() if self.data.task.input_dim is None else None
        self._best = BestModel(folder, self.config.checkpoint_metric, smaller, saved, tokenizer)
        callbacks = [self._best, RunProgress(self._console), *callbacks_for(self.config, self.module, self._best, self._record)]
        return lightning_trainer(self.config, folder, batches, callbacks, logger=loggers, **devices)

    def fit(self, steps: int | None = None) -> None:
        """Train for some more optimizer steps, and no further than the config says; nothing is done once training has ended.

        To callbacks each call is a training of its own, with `on_train_start` and `on_train_end`.

        Args:
            steps: how many; None: to the end of the config.

        Raises:
            RunError: training failed, or the run is finished; what was saved is whole.
            Interrupted: a signal stopped it, after its weights were saved.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; expected at least 1, or None to train to the end")
        trainer = self._prepared()
        if self._result is not None:
            raise RunError(f"{self.folder}: this run is finished, and its module holds the best model; make a new Run to train")
        if self.ended:
            return
        self._loop.pausable.pause_at = None if steps is None else self.step + steps
        self._datamodule.start = self._loop.position
        self.module.train()
        self._random.restore()
        with quiet_lightning(), self._errors_named():
            trainer.fit(self.module, datamodule=self._datamodule)
            self.ended = self._loop.ended  # Lightning's answer comes with a note on why, which is kept quiet too
        self._random = RandomState.now()

    def measure(self, records: Literal["val", "test"] = "val") -> dict[str, float]:
        """Measure the model with its present weights, and log what was measured.

        Args:
            records: `val`, the held-out records, where a model that is better than those before becomes the run's best; or
                `test`, those of `test_path`.

        Returns:
            Values by name, such as `val_loss`.

        Raises:
            SpecError: the config has no `test_path`.
        """
        trainer = self._prepared()
        if records == "test" and self.data.test is None:
            raise SpecError("test_path is none, so there are no test records to measure on; expected a JSONL file")
        with self._errors_named():
            return self._measured(trainer, records)

    def _measured(self, trainer: pl.Trainer, records: str) -> dict[str, float]:
        measure = trainer.validate if records == "val" else trainer.test
        with quiet_lightning():
            measure(self.module, datamodule=self._datamodule, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(f"{records}_")}

    def _errors_named(self) -> AbstractContextManager[None]:
        return errors_name(self._record, lambda: self.step)

    def finish(self) -> RunResult:
        """Take the best model, measure it on the test records, and write what it reached to `run.json`.

        Raises:
            RunError: no measurement of `checkpoint_metric` was a finite number, so no model was kept.
        """
        if self._result is not None:
            return self._result
        trainer = self._prepared()
        with self._errors_named():
            self._result = self._finished(trainer)
        return self._result

    def _finished(self, trainer: pl.Trainer) -> RunResult:
        if self._best.measured_at != self.step:  # training ended between two measurements
            self._measured(trainer, "val")
        if not self._best.best:
            raise RunError(f"{self.config.checkpoint_metric} was no finite number in any measurement, so no model was "
                           "kept; a smaller lr helps where a run diverges")
        load_weights(self.module.model, read_model(self.folder))
        self.module.hooks.hook.checkpoint_loaded(folder=self.folder / BEST, model=self.module.model)
        self.module.eval()
        metrics = dict(self._best.best)
        if self.data.test is not None:
            metrics |= self._measured(trainer, "test")
        test_baselines = {} if self.data.test is None else baselines_of(self.data, self.data.test)
        result = RunResult(self.folder, metrics, baselines_of(self.data, self.data.val), self.module, self.data, test_baselines)
        self._record.write("finished", self.step, results=result.to_data())
        return result

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's tensors by name, on the CPU; a tensor that two layers share is there under both names."""
        self._prepared()
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.model.state_dict().items()}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights. The optimizer's state stays; taking `weights()` back changes nothing.

        Args:
            weights: tensors with the names and shapes of `weights()`, of which copies are taken.

        Raises:
            SpecError: names or shapes are not those of this model.
        """
        self._prepared()
        own = self.module.model.state_dict()
        for name in [*own, *weights]:
            theirs, ours = (list(tensors[name].shape) if name in tensors else "no such tensor" for tensors in (weights, own))
            if theirs != ours:
                raise SpecError(f"weights of another model: {name} is {theirs}; expected {ours}")
        self.module.model.load_state_dict(weights)
        self._best.measured_at = -1  # the latest measurement was of other weights

    def state_dict(self) -> dict[str, Any]:
        """A copy of what the rest of this process's training depends on, for a resumption. Nothing reads it back yet.

        Keys:
            config: the completed config, as JSON data.
            step: optimizer steps done.
            weights: the model's, as `weights()` gives them.
            optimizers, schedulers: lists of their states; empty before the first `fit`.
            scaler: state of the gradient scaler; empty except in precision 16.
            position: the epoch in which training continues, and how many of its batches are done.
            progress: the counters of Lightning's loops.
            random: states of the random generators of torch, its GPUs, numpy and Python.
            best, measured_at: what the best model reached, and the step of the latest measurement.
            callbacks: states of callbacks that have one, such as early stopping, by their `state_key`.
        """
        trainer, loop = self._prepared(), self._loop
        optimization = loop.optimization or {"optimizers": [], "schedulers": []}
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
        return copy.deepcopy({
            "config": self.config.to_data(), "step": self.step, "weights": self.weights(), **optimization,
            "scaler": trainer.precision_plugin.state_dict(), "position": loop.position, "progress": loop.state_dict(),
            "random": asdict(self._random), "best": self._best.best, "measured_at": self._best.measured_at,
            "callbacks": {name: state for name, state in states.items() if state}})

    def _prepared(self) -> pl.Trainer:
        """Lightning's trainer, after `prepare`."""
        self.prepare()
        assert self._trainer is not None
        return self._trainer
