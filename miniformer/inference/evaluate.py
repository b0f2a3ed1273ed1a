"""Measuring a model on records whose answers are known: the loss and every metric of its task."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.data.notes import Cuts, nothing_in, too_few
from miniformer.data.packing import PackedRows
from miniformer.data.prepare import n_tokens
from miniformer.kernel.errors import DataError
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split
from miniformer.tasks.metrics import LossRatio

from .load import Trained

logger = logging.getLogger(__name__)
NAME = "evaluated"
CHUNK = 4096
"""The number of records that are held at a time; a task that packs fills rows with the records of one chunk."""


@torch.inference_mode()
def evaluate(trained: Trained, located: Iterable[tuple[str, Any]], *, batch_size: int = 32) -> dict[str, float]:
    """The loss and the metrics of the model's task over records. They are read once, in bounded memory.

    What a user should know of the records, such as how many texts were cut, is logged.

    Args:
        trained: the model, with its task and tokenizer; it runs where its weights are.
        located: the task's records, each with its place, such as file and line.
        batch_size: rows that go through the model together. The loss of `embedding` depends on it, since there every pair is
            compared with the rest of its batch.

    Raises:
        DataError: a record that the task cannot measure on, with its place; or nothing in any of them can be measured on.
    """
    task, device = trained.task, next(trained.model.parameters()).device
    metrics = {name: metric.to(device) for name, metric in task.metrics(trained.tokenizer).items()}
    loss = LossRatio().to(device)
    for batch in _batches(trained, located, batch_size):
        batch = batch.to(device)

        def measure(hidden: Tensor, head: Head, batch: Batch = batch) -> LossTerm:
            term = task.loss(hidden, head, batch)
            task.update(metrics, hidden, head, batch, term)
            return term

        loss.update(*trained.model.read(batch, readout=measure))
    return {name: float(metric.compute()) for name, metric in {"loss": loss, **metrics}.items()}


def _batches(trained: Trained, located: Iterable[tuple[str, Any]], size: int) -> Iterator[Batch]:
    task, length, remaining = trained.task, trained.model.config.max_seq_len, iter(located)
    seen = _Seen(trained)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        examples = [example for where, record in chunk for example in _examples(trained, where, record)]
        seen.add(chunk, examples)
        # the rows that training measures on, so that the numbers are those of a run
        rows: Sequence[Example] | PackedRows = PackedRows(examples, length) if task.packs else sorted(examples, key=n_tokens)
        for start in range(0, len(rows), size):
            yield task.collate([rows[i] for i in range(start, min(start + size, len(rows)))])
    seen.tell()


class _Seen:
    """What a user should know of the records that were measured on."""

    def __init__(self, trained: Trained) -> None:
        self.task, self.cuts = trained.task, Cuts(trained.model.config.max_seq_len, texts=trained.task.input_dim is None)
        self.file, self.count = "", 0
        self.remarks: list[str] = []
        self.measured, self.reason = False, ""

    def add(self, chunk: Sequence[tuple[str, Any]], examples: Sequence[Example]) -> None:
        """Look at some more records, each with its place, and at their examples."""
        split = Split([record for _, record in chunk], examples)
        self.file = self.file or chunk[0][0].rpartition(":")[0] or chunk[0][0]
        # of records that are not held in memory together, only what can be counted is known
        self.remarks = [] if self.count else [*too_few(self.task, len(chunk), examples, NAME), *self.task.remarks(split, NAME)]
        self.count += len(chunk)
        self.cuts.add(() if self.task.packs else examples)
        self.measured |= not (reason := nothing_in(self.task, split))
        self.reason = reason or self.reason

    def tell(self) -> None:
        """Log it.

        Raises:
            DataError: nothing could be measured.
        """
        if self.count and not self.measured:
            raise DataError(f"{self.file}: nothing to measure on: {self.reason}")
        for note in [*self.cuts.notes(), *self.remarks]:
            logger.warning(f"{self.file}: {note}")


def _examples(trained: Trained, where: str, record: Any) -> Sequence[Example]:
    limit = None if trained.task.packs else trained.model.config.max_seq_len
    try:
        return trained.task.examples(record, trained.tokenizer, limit)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
