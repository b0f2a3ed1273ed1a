"""How Lightning is set up for a run: devices, loggers, the trainer, and which of its messages are shown."""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from miniformer.kernel.errors import SpecError, UserError
from miniformer.ops.torch_private import check_compiler

from .callbacks import AtomicCheckpointIO
from .processes import is_first, launched
from .train_config import TrainConfig

PRECISIONS: dict[Any, Any] = {16: "16-mixed", 32: "32-true", 64: "64-true", "bf16": "bf16-mixed"}
LOGGER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""What each logger imports: the first of these that can be imported."""
UNWANTED = (".*does not have many workers.*", ".*LeafSpec.*", ".*Found .* module.* in eval mode.*",
            ".*exists and is not empty.*", ".*have no `val_dataloader`.*", ".*dataloader.*sampler.*", ".*treespec.*",
            ".*sync_dist=True.*")
"""Lightning's warnings about decisions that a run has made on purpose, and about its own dependencies."""


def devices_for(config: TrainConfig) -> dict[str, Any]:
    """The devices to train on, as arguments of `pl.Trainer`.

    With torchrun each process has a device; otherwise Lightning starts a process for each GPU.

    Raises:
        UserError: the machine lacks what the config asks for.
    """
    available = torch.cuda.device_count()
    if config.gpus is not None and config.gpus > available:
        raise UserError(f"gpus is {config.gpus}, and this machine has {available}; leave it out to use what there is")
    if config.precision == 64 and config.gpus != 0 and not available and torch.backends.mps.is_available():
        raise SpecError("precision is 64, and this machine's GPU has no float64; expected 32, or gpus 0")
    if config.precision == 16 and (config.gpus == 0 or not (available or torch.backends.mps.is_available())):
        raise SpecError("precision is 16, and float16 needs a GPU, which this run does not have; expected bf16 or 32")
    accelerator = "auto" if config.gpus is None else "gpu" if config.gpus else "cpu"
    processes = launched()
    if processes is not None:
        return {"accelerator": accelerator, "devices": processes[0], "num_nodes": processes[1]}
    return {"accelerator": accelerator, "devices": max(1, available if config.gpus is None else config.gpus), "num_nodes": 1}


def check_machine(config: TrainConfig) -> None:
    """Refuse, before the data is read, a run that needs a package or a tool that is not there.

    Raises:
        UserError: it says how to get it.
    """
    if config.logger != "csv":
        _check_logger(config.logger)
    if config.compile:
        check_compiler(config.gpus != 0 and torch.cuda.is_available())


def _check_logger(name: str) -> None:
    """Import what a logger needs, as a package that cannot be imported is of no use; and see whether wandb can log in."""
    problems: list[ImportError] = []
    for package in LOGGER_PACKAGES[name]:
        try:
            importlib.import_module(package)
            break
        except ImportError as error:
            problems.append(error)
    else:
        is_there = not isinstance(problems[0], ModuleNotFoundError)
        raise UserError(f"logger {name!r} {f'cannot be imported ({problems[0]})' if is_there else 'is not installed'}; "
                        f"to get it: pip install 'miniformer[{name}]'")
    if name == "wandb" and is_first():
        _check_login()


def _check_login() -> None:
    """Refuse wandb without an API key, for which it would ask on a terminal."""
    import wandb

    if wandb.setup().settings.mode not in ("online", None) or sys.stdin is None or sys.stdin.isatty():
        return
    with suppress(TypeError):  # releases before 0.27 cannot be asked
        if not wandb.login(prompt=False, verify=False):
            raise UserError("logger 'wandb' has no API key; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline")


def loggers_for(config: TrainConfig, folder: Path) -> list[Logger]:
    """The logger of `metrics.csv`, and the one that the config names.

    Raises:
        UserError: that logger cannot start; the run folder, in which nothing is yet, is removed.
    """
    loggers: list[Logger] = [CSVLogger(folder.parent, name=folder.name, version="")]
    if config.logger == "csv":
        return loggers
    try:
        if config.logger == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False))
        else:
            wandb_logger = WandbLogger(name=folder.name, project="miniformer", save_dir=folder)
            _ = wandb_logger.experiment  # it starts now, since it may not reach its server
            loggers.append(wandb_logger)
    except Exception as error:
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)
        hint = "; with WANDB_MODE=offline it needs no server" if config.logger == "wandb" else ""
        raise UserError(f"logger {config.logger!r} cannot start: {str(error) or type(error).__name__}{hint}") from error
    return loggers


def lightning_trainer(config: TrainConfig, folder: Path, batches: int, callbacks: list[Any], **options: Any) -> pl.Trainer:
    """Lightning's trainer for a run.

    Args:
        config: the completed run.
        folder: where it writes.
        batches: training batches of an epoch, of each process.
        callbacks: in the order in which Lightning calls them.
        options: further arguments of `pl.Trainer`, such as devices and loggers.
    """
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
    """Silence Lightning's notes on the machine and its advertisements; warnings that concern a user are kept."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric",
               "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in UNWANTED:
            warnings.filterwarnings("ignore", message=f"(?s){text}")  # names of folders may have line ends
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
