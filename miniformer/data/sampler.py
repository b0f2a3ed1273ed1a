"""The order of batches: a pure function of seed and epoch, so that training can continue at any batch of any epoch."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from miniformer.kernel.task import Example

SPREAD = 0.05
"""Lengths are stretched at random by up to this part before sorting, so that epochs differ and little is padded."""


class EpochBatches(Sampler[list[int]]):
    """Batches of indices, shuffled anew in each epoch. Where lengths are given, examples of like length share a batch.

    Args:
        count: number of examples.
        batch_size: examples in a batch; the last may be smaller.
        seed: with the epoch, it decides the order; None: always the same order, each example exactly once.
        lengths: tokens of each example; None: all have the same.
        rank, world_size: this process takes every `world_size`-th batch; all take equally many.
        start: the epoch to begin with, and how many of this process's batches of that epoch to skip, as a pause left them.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, *, lengths: Sequence[int] | None = None, rank: int = 0,
                 world_size: int = 1, start: tuple[int, int] = (0, 0)) -> None:
        self.count, self.batch_size, self.seed, self.lengths = count, batch_size, seed, lengths
        self.rank, self.world_size, self.start = rank, world_size, start
        self.epoch = start[0]
        self.sampler = self  # Lightning looks here for the sampler whose `set_epoch` it calls

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass one of this epoch; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, skipped ones included."""
        batches = -(-self.count // self.batch_size)
        short = 0 if self.seed is not None else self.rank
        return -(-(batches - short) // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        # The epoch is read when the first batch is asked for: a trainer that resumes a checkpoint makes the iterator first and
        # then calls `set_epoch`.
        batches = self.batches(self.epoch)
        if self.seed is not None:
            # repeat the first batches until all processes have equally many: one without would leave the others waiting
            # for its gradients for ever
            batches += list(itertools.islice(itertools.cycle(batches), -len(batches) % self.world_size))
        first_epoch, done = self.start
        yield from batches[self.rank::self.world_size][done if self.epoch == first_epoch else 0:]

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, in order."""
        if self.seed is None:
            order = list(range(self.count)) if self.lengths is None else sorted(range(self.count), key=self.lengths.__getitem__)
            return [order[i:i + self.batch_size] for i in range(0, self.count, self.batch_size)]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.lengths is None:
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            longer = 1 + SPREAD * torch.rand(self.count, generator=generator, dtype=torch.float64)
            order = (torch.tensor(self.lengths) * longer).argsort().tolist()
        batches = [order[i:i + self.batch_size] for i in range(0, self.count, self.batch_size)]
        if self.lengths is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches


class DrawnBatches(EpochBatches):
    """Batches of keys (epoch, index) of `Drawn`. The epoch is in the key because worker processes do not know it."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield [(self.epoch, index) for index in batch]


class Drawn(Dataset[Example]):
    """Examples of an epoch, each with its `draw`: the number that decides all that is random about it, such as its masks.

    Args:
        rows: the examples.
        seed: with the epoch and the place of a row, it decides the draw.
    """

    def __init__(self, rows: Any, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        return replace(self.rows[index], draw=zlib.crc32(f"{self.seed} {epoch} {index}".encode()))
