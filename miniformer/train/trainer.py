"""A run from its config to its folder: data, model, training, what it reached.

`runs/<experiment>/` holds `run.json` (everything that decides the run, resolved), `metrics.csv`, `checkpoints/last.ckpt`
(to go on) and `checkpoints/best_model/` (to use). It is made only once the data is read and the model is built.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from rich.console import Console

from miniformer import __version__
from miniformer.checkpoint.atomic import make_folder, write_json
from miniformer.checkpoint.provenance import environment, provenance
from miniformer.checkpoint.store import BEST, load_weights, read_model
from miniformer.data.jsonl import STDIN
from miniformer.data.prepare import PreparedData, token_counts
from miniformer.kernel.errors import RunError, SpecError, UserError, did_you_mean
from miniformer.kernel.spec import build
from miniformer.kernel.task import Task
from miniformer.tasks.metrics import finite

from .callbacks import AtomicCheckpointIO, BestModel, LastState, StopOnSignal
from .datamodule import MiniFormerDataModule
from .module import MiniFormerLitModule
from .processes import is_first, launched
from .progress import RunProgress
from .specs import model_class, model_spec, task_spec, with_data_decisions
from .train_config import TrainConfig

PRECISIONS: dict[Any, Any] = {16: "16-mixed", 32: "32-true", 64: "64-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run reached.

    Attributes:
        folder: the run folder.
        metrics: what the best model reached on the held-out records (`val_`) and the test file (`test_`), and its `step`.
        baselines: what trivial predictors reach on the same records.
        module: the best model, in eval mode.
        data: what it was trained on.
    """

    folder: Path
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    module: MiniFormerLitModule
    data: PreparedData


def train(config: TrainConfig, tokenizer: Any = None, console: Console | None = None) -> RunResult:
    """Train a model as `config` says.

    Args:
        config: the run.
        tokenizer: used instead of the one that the config names, or of one trained on the data.
        console: where progress is shown; none: nowhere.

    Raises:
        UserError: the config or the data is wrong; nothing was written.
        RunError: the run failed; what it saved is whole.
        Interrupted: a signal stopped it after it saved its state.
    """
    first = is_first()
    console = console if console is not None and first else Console(quiet=True)
    if first:
        _free_folder(config)
    with quiet_lightning():
        devices = _devices(config)
        _check_model(config)
        pl.seed_everything(config.seed, verbose=False)
        datamodule = MiniFormerDataModule(config, tokenizer)
        data = datamodule.data
        config = with_data_decisions(config, data)
        counts = token_counts(data.train.examples)
        unit, inputs = (("tokens", f"vocabulary: {data.tokenizer.vocab_size:,}") if data.task.input_dim is None
                        else ("steps", f"features: {data.task.input_dim}"))
        source = "; from the cache" if datamodule.from_cache else ""
        console.print(f"{counts['examples']:,} examples, {counts['tokens']:,} {unit}; held out: "
                      f"{len(data.val.examples):,} examples; {inputs}{source}", highlight=False)
        module = MiniFormerLitModule(config, data.tokenizer)
        console.print(f"model: {sum(p.numel() for p in module.model.parameters()):,} parameters, "
                      f"precision {config.precision}", highlight=False)
        smaller = _smaller_is_better(config, module)
        batches = datamodule.batches_per_epoch(devices["devices"] * devices["num_nodes"])
        folder = _new_folder(config) if first else Path(config.work_dir)  # the others are told it once they are connected
        logger = _loggers(config, folder)
        spec = {"model": module.model.config.model_dump(mode="json"), "task": config.to_data()["task"]}
        record = {"miniformer": __version__, **spec, "train": config.to_data(), **provenance([spec, config.to_data()]),
                  "packages": environment(), "data": {**data.fingerprint, "train_tokens": counts["tokens"]}}
        if first:
            write_json(folder / "run.json", record)
        saved = {"assembly": module.model.assembly, "extensions": config.extensions, **spec}
        tokens = data.tokenizer.to_json() if data.task.input_dim is None else None
        best = BestModel(folder, config.checkpoint_metric, smaller, saved, tokens)
        callbacks = _callbacks(config, module, best, smaller)
        trainer = lightning_trainer(config, folder, batches, [best, RunProgress(console), *callbacks], logger=logger, **devices)
        with _naming(best, first):
            trainer.fit(module, datamodule=datamodule)
            if best.measured_at != trainer.global_step:  # the run ended between two measurements
                trainer.validate(module, datamodule=datamodule, verbose=False)
            if not best.best:
                raise RunError(f"{config.checkpoint_metric} was no finite number in any measurement, so no model was kept; a "
                               "smaller lr helps where a run diverges")
        folder, metrics = best.run, dict(best.best)
        load_weights(module.model, read_model(folder))
        module.hooks.hook.checkpoint_loaded(folder=folder / BEST, model=module.model)
        module.eval()
        if data.test is not None:
            trainer.test(module, datamodule=datamodule, verbose=False)
            metrics |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test_")}
        baselines = data.task.baselines(data.train, data.val, data.tokenizer)
        if first:
            results = {"best": finite(metrics), "baselines": {name: finite(values) for name, values in baselines.items()}}
            write_json(folder / "run.json", {**record, "results": results})
    return RunResult(folder, metrics, baselines, module, data)


def _check_model(config: TrainConfig) -> None:
    """Refuse a model that cannot be built before the data is read, which decides how many outputs there are."""
    fields = config.architecture
    if fields.get("input_dim") is not None:
        config = config.with_fields(model_config={"output_dim": 1, **fields})
    task = build(Task, task_spec(config))
    with torch.device("meta"):
        model_class(task)(model_spec(config, task))


def _free_folder(config: TrainConfig) -> Path:
    """The run's folder, which is not there yet."""
    root = Path(config.work_dir)
    if root.exists() and not root.is_dir():
        raise UserError(f"work_dir {root}: a file; expected a folder")
    if config.experiment_name is not None:
        folder = root / config.experiment_name
        if folder.exists():
            raise UserError(f"{folder} is there already; choose another --experiment-name, or remove it")
        return folder
    data = "stdin" if config.train_path == str(STDIN) else Path(config.train_path).stem
    name = f"{data}-{config.task.name.rpartition(':')[2]}"
    taken = [int(path.name.removeprefix(f"{name}-")) for path in root.glob(f"{name}-*")
             if path.name.removeprefix(f"{name}-").isdecimal()]
    return root / f"{name}-{max(taken, default=0) + 1}"


def _new_folder(config: TrainConfig) -> Path:
    """The run's folder, made here, so that no other run takes it."""
    while True:
        folder = _free_folder(config)
        if make_folder(folder):
            return folder


@contextmanager
def _naming(best: BestModel, first: bool) -> Iterator[None]:
    """Errors of the run name its folder; one that holds nothing but `run.json` is removed."""
    try:
        yield
    except BaseException as error:
        record, said = best.run / "run.json", f"run folder: {best.run}"
        if first and [path.name for path in best.run.iterdir()] == [record.name]:
            record.unlink()
            best.run.rmdir()
            said = f"nothing was saved, so the run folder {best.run} was removed"
        if isinstance(error, RunError):
            raise RunError(f"{error} ({said})") from error
        raise


def _devices(config: TrainConfig) -> dict[str, Any]:
    """What Lightning runs on. With torchrun each process has a device; otherwise Lightning starts one for each GPU."""
    there = torch.cuda.device_count()
    if config.gpus is not None and config.gpus > there:
        raise UserError(f"gpus is {config.gpus}, and this machine has {there}; leave it out to use what there is")
    if config.precision == 16 and (config.gpus == 0 or not (there or torch.backends.mps.is_available())):
        raise SpecError("precision is 16, and float16 needs a GPU, which this run does not have; expected bf16 or 32")
    accelerator = "auto" if config.gpus is None else "gpu" if config.gpus else "cpu"
    processes = launched()
    if processes is not None:
        return {"accelerator": accelerator, "devices": processes[0], "num_nodes": processes[1]}
    return {"accelerator": accelerator, "devices": max(1, there if config.gpus is None else config.gpus), "num_nodes": 1}


def _loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    """`metrics.csv`, and the logger that the config names."""
    loggers: list[Logger] = [CSVLogger(folder.parent, name=folder.name, version="")]
    try:
        if config.logger == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False))
        elif config.logger == "wandb":
            loggers.append(WandbLogger(name=folder.name, project="miniformer", save_dir=folder))
    except ModuleNotFoundError:
        if is_first():
            folder.rmdir()
        raise UserError(f"logger {config.logger!r} is not installed; "
                        f"to get it: pip install 'miniformer[{config.logger}]'") from None
    return loggers


def _smaller_is_better(config: TrainConfig, module: MiniFormerLitModule) -> bool:
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


def _callbacks(config: TrainConfig, module: MiniFormerLitModule, best: BestModel, smaller: bool) -> list[Any]:
    """What may end a run and what extensions add, then what saves its state, which sees all that they did."""
    found: list[Any] = []
    if config.early_stopping_patience is not None:
        found.append(EarlyStopping(config.checkpoint_metric, patience=config.early_stopping_patience,
                                   mode="min" if smaller else "max"))
    for added in module.hooks.hook.callbacks():
        found += added
    return [*found, LastState(best.run), StopOnSignal(best.run, best)]


def lightning_trainer(config: TrainConfig, folder: Path, batches: int, callbacks: list[Any], **options: Any) -> pl.Trainer:
    """Lightning's trainer for a run of which an epoch has so many batches."""
    max_epochs, max_steps = config.duration
    if max_steps > 0:
        batches = min(batches, max_steps * config.accumulate_grad_batches)
    return pl.Trainer(
        **options, max_epochs=max_epochs, max_steps=max_steps, precision=PRECISIONS[config.precision], callbacks=callbacks,
        plugins=[AtomicCheckpointIO()], gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches, val_check_interval=config.val_every or batches,
        check_val_every_n_epoch=None, log_every_n_steps=min(10, batches), use_distributed_sampler=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on the machine and its advertisements; its warnings that concern a user are kept."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric",
               "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in (".*does not have many workers.*", ".*LeafSpec.*", ".*Found .* module.* in eval mode.*",
                     ".*exists and is not empty.*", ".*have no `val_dataloader`.*", ".*dataloader.*sampler.*", ".*treespec.*",
                     ".*sync_dist=True.*"):
            warnings.filterwarnings("ignore", message=text)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


if __name__ == "__main__":
    from miniformer.cli import main

    main(prefix=["train"])
