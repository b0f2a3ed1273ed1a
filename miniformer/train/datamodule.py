"""Datasets and loaders of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from miniformer.config.model_config import TransformerConfig
from miniformer.data.cache import Cache, Settings
from miniformer.data.packing import PackedRows
from miniformer.data.prepare import PreparedData, prepare_data, token_lengths
from miniformer.data.sampler import Drawn, DrawnBatches, EpochBatches
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.errors import SpecError
from miniformer.kernel.spec import ComponentSpec, resolve
from miniformer.kernel.task import Batch, Example, Split, Task

from .processes import is_first
from .specs import task_spec
from .train_config import CACHE, TrainConfig

logger = logging.getLogger(__name__)


class JSONLinesDataset(Dataset[Example]):
    """The examples of a JSONL file for a task, one for each record.

    The task learns its labels and scales from the file, unless its spec has them. To give a second dataset those of a first
    one, pass the first as its task: `JSONLinesDataset("val.jsonl", task=train)`.

    Args:
        path: the file.
        tokenizer: None takes that of the dataset that `task` is, or trains one on the file.
        task: a task's name, its spec, or another dataset.

    Attributes:
        task, task_spec: the task, fitted to the file, and its spec.
        tokenizer: of the examples.
        examples: those of all records, in order.

    Raises:
        DataError: with file and line.
        SpecError: there is no such task.
    """

    def __init__(self, path: str | Path, tokenizer: Any = None, task: Any = "language-modeling") -> None:
        path = os.fspath(path)
        if isinstance(task, JSONLinesDataset):
            tokenizer = tokenizer if tokenizer is not None or task.task.input_dim is not None else task.tokenizer
            task = task.task_spec
        data = prepare_data(resolve("task", task), path, path, tokenizer=tokenizer and Tokenizer.of(tokenizer))
        self.task: Task = data.task
        self.task_spec: ComponentSpec = data.task_spec
        self.tokenizer: Tokenizer = data.tokenizer
        self.examples = data.train.examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class LateLoader(DataLoader[Batch]):
    """A loader that begins when its first batch is asked for: `Trainer.fit(ckpt_path=...)` makes the iterator before it has
    read the checkpoint. Then the batches go on after the last one of the checkpoint.

    Attributes:
        trainer: what trains on the batches; None: they are measured.
    """

    trainer: pl.Trainer | None = None

    def __iter__(self) -> Any:
        batches = self.batch_sampler
        if self.trainer is not None and self.trainer.fit_loop.restarting and isinstance(batches, EpochBatches):
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            batches.start = batches.epoch, done
        yield from super().__iter__()


class MiniFormerDataModule(pl.LightningDataModule):
    """The loaders of a run, made from the files that its config names.

    Args:
        config: the run.
        tokenizer: used instead of the one that the config names, or of one trained on the data.
    """

    def __init__(self, config: TrainConfig, tokenizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.from_cache = False
        self.start = 0, 0
        """The epoch in which the next training loader begins, and how many of its batches are done already."""
        self._tokenizer = tokenizer
        self._cache: Cache | None = None
        self._data: PreparedData | None = None
        self._packed: dict[int, PackedRows] = {}

    @property
    def data(self) -> PreparedData:
        """The records and examples, read when first asked for. What a user should know of them is logged then.

        Raises:
            DataError: with file and line; or there is nothing to learn from or to measure on.
        """
        if self._data is None:
            settings = self._settings()
            self._cache = Cache(Path(self.config.work_dir) / CACHE, settings) if self.config.cache else None
            self._data = None if self._cache is None else self._cache.load()
            self.from_cache = self._data is not None
            if self._data is None:
                self._data = prepare_data(
                    settings.task, *settings.paths, val_fraction=settings.val_fraction, tokenizer=settings.tokenizer,
                    vocab_size=settings.vocab_size, max_len=self.row_length)
            for note in self._data.notes if is_first() else ():
                logger.warning(note)
        return self._data

    def _settings(self) -> Settings:
        config, tokenizer = self.config, self._tokenizer
        if tokenizer is not None:
            tokenizer = Tokenizer.of(tokenizer)
        elif config.tokenizer is not None:
            tokenizer = Tokenizer.load(config.tokenizer)
        return Settings(task_spec(config), (config.train_path, config.val_path, config.test_path), config.val_fraction,
                        tokenizer, config.architecture.get("vocab_size", config.tokenizer_vocab_size))

    def prepare_data(self) -> None:
        """Keep the data for the next run; Lightning calls this in one process alone, before it trains."""
        if self._cache is not None and self._data is not None and not self.from_cache:
            self._cache.store(self._data)

    @property
    def row_length(self) -> int:
        """Tokens of a packed row, and the most of an unpacked one."""
        default: int = TransformerConfig.model_fields["max_seq_len"].default
        return int(self.config.architecture.get("max_seq_len", default))

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches in one pass, of each of so many processes.

        Raises:
            SpecError: there is not a batch to measure on for each.
        """
        for split in (self.data.val, self.data.test):
            batches = world_size if split is None else -(-len(self._rows(split)) // self.config.batch_size)
            if batches < world_size:
                raise SpecError(f"{'val' if split is self.data.val else 'test'} records make {batches} batches of batch_size = "
                                f"{self.config.batch_size}, and the run has {world_size} processes; expected one for each, by "
                                "more records or a smaller batch_size")
        return len(EpochBatches(self.train_rows, self.config.batch_size, self.config.seed, world_size=world_size))

    @property
    def train_rows(self) -> int:
        """Rows of the training data: its examples, or what packing makes of them."""
        return len(self._rows(self.data.train))

    @property
    def batch_tokens(self) -> int:
        """Tokens of a training batch, sources included: in packed rows as many as fit, in others on average."""
        rows = self._rows(self.data.train)
        size = min(self.config.batch_size, len(rows))
        return size * (rows.length if isinstance(rows, PackedRows) else sum(token_lengths(rows)) // max(1, len(rows)))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.data.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.data.val, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.data.test or self.data.val, shuffle=False)

    def _rows(self, split: Split) -> Sequence[Example] | PackedRows:
        if not self.data.task.packs:
            return split.examples
        if id(split) not in self._packed:
            self._packed[id(split)] = PackedRows(split.examples, self.row_length)
        return self._packed[id(split)]

    def _loader(self, split: Split, *, shuffle: bool) -> DataLoader[Batch]:
        rows = self._rows(split)
        data: Any = Drawn(rows, self.config.seed) if shuffle else rows
        # With a generator of its own, a loader draws its workers' seeds from that and not from the one that dropout uses, so
        # that neither pauses nor measurements change the weights.
        loader = LateLoader(data, batch_sampler=self._batches(rows, shuffle=shuffle), collate_fn=self.data.task.collate,
                            num_workers=self.config.num_workers, persistent_workers=self.config.num_workers > 0,
                            generator=torch.Generator().manual_seed(self.config.seed))
        loader.trainer = self.trainer if shuffle else None
        return loader

    def _batches(self, rows: Any, *, shuffle: bool) -> EpochBatches:
        config, trainer = self.config, self.trainer
        lengths = None if isinstance(rows, PackedRows) else token_lengths(rows)
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not shuffle:
            return EpochBatches(len(rows), config.batch_size, None, lengths=lengths, rank=rank, world_size=world_size)
        return DrawnBatches(len(rows), config.batch_size, config.seed, lengths=lengths, rank=rank, world_size=world_size,
                            start=self.start)
