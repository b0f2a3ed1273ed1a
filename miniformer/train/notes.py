"""Notes on settings of a run that have less effect than they say, a line each. They are said before training begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

from rich.console import Console

from .train_config import TrainConfig

logger = logging.getLogger(__name__)


def say_notes(console: Console, notes: Sequence[str]) -> None:
    """Print notes on a console; where it is quiet, as for who calls `train` from Python, they are warnings of the log."""
    for note in notes:
        if console.quiet:
            logger.warning(note)
        else:
            console.print(f"note: {note}", highlight=False, markup=False)


def notes_on(config: TrainConfig, rows: int, batches: int) -> Iterator[str]:
    """What in a config does not fit its data.

    Args:
        config: the run.
        rows: of all training data, packed ones where the task packs.
        batches: of an epoch, in each process.
    """
    yield from _files(config)
    if config.batch_size > rows:
        yield f"batch_size is {config.batch_size}, and there are {rows} rows to train on: a batch has them all"
    accumulated = config.accumulate_grad_batches
    if accumulated > batches:
        yield (f"accumulate_grad_batches is {accumulated}, and an epoch has {_counted(batches, 'batch')}: a step ends with its "
               "epoch, so it has no more")
    steps, taken = _length(config, batches)
    if config.warmup_steps is not None and config.warmup_steps >= steps:
        yield (f"warmup_steps is {config.warmup_steps}, and the run has {_counted(steps, 'step')}: the learning rate stays "
               "below lr; expected fewer, or none for 1/20 of the run")
    every = config.val_every or min(batches, taken)
    if every > taken:
        yield f"val_every is {every}, and the run has {_counted(taken, 'batch')}: the model is measured at the end only"
    patience, measured = config.early_stopping_patience, taken // every
    if patience is not None and patience >= measured:
        yield (f"early_stopping_patience is {patience}, and the run has {_counted(measured, 'measurement')}: it cannot stop "
               "early; expected a smaller val_every, or a longer run")


def _length(config: TrainConfig, batches: int) -> tuple[int, int]:
    """The optimizer steps of a run, and the batches that it takes for them. The last step of an epoch may have fewer."""
    max_epochs, max_steps = config.duration
    in_epoch = -(-batches // config.accumulate_grad_batches)
    steps = min(bound for bound in (max_steps, max_epochs * in_epoch) if bound > 0)
    epochs, rest = divmod(steps, in_epoch)
    return steps, epochs * batches + min(batches, rest * config.accumulate_grad_batches)


def _files(config: TrainConfig) -> Iterator[str]:
    """Files that are given twice, so that what is measured was trained on."""
    for name in ("val_path", "test_path"):
        path = getattr(config, name)
        if path is not None and _is_same(path, config.train_path):
            yield f"{name} is the file that is trained on, so what is measured there says nothing about new records"


def _is_same(one: str, other: str) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:  # one is no file, such as the name of an embedded corpus
        return False


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")
