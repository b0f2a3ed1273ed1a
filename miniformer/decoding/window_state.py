"""The decoding state of an attention with a window: what the window can still reach, however long the text.

Shapes: N tensors, B batch, K heads, E width, T columns of a call, M columns held before a call and given by it, W window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.masks import Mask
from miniformer.kernel.state import State

from .state import BufferState

REACH = 32
"""Columns by which the state of a window can always go back, and that are gathered before the oldest are dropped."""


def room(window: int, capacity: int) -> int:
    """Slots that a `WindowState` needs."""
    return min(capacity, window - 1 + 2 * REACH)


@dataclass(frozen=True, slots=True)
class Held:
    """Which of all S columns are those M that a state gave.

    Attributes:
        count: M.
        columns: `[B, M]`, the column that each is, negative for none; None: the latest M.
    """

    count: int
    columns: Tensor | None = None

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """`[B or 1, H, T, S] -> [B or 1, H, T, M]`."""
        if bias is None or self.columns is None:
            return None if bias is None else bias[..., -self.count:]
        return bias.take_along_dim(self.columns[:, None, None].clamp(min=0), dim=-1)

    def mask(self, mask: Mask) -> Mask:
        """The mask of a window over all columns, for these."""
        assert mask.allowed is not None, "a window is no plain mask"
        if self.columns is None:
            return Mask(mask.allowed[..., -self.count:])
        columns_B11M = self.columns[:, None, None]
        return Mask(mask.allowed.take_along_dim(columns_B11M.clamp(min=0), dim=-1) & (columns_B11M >= 0))


class WindowState(State):
    """N tensors of the columns that a window can still reach, in a buffer `[N, B, K, C, E]` of C slots.

    When the slots are full, the last `REACH` columns stay as they are, for `truncate` to go back to, and of those before them
    the last W - 1 of each row that are no padding. A document is one run of columns, padding aside, so no window goes further.
    What is dropped is decided without looking at values, so that nothing waits for a GPU.

    Args:
        buffer: of `room(window, capacity)` slots.
        window: W.
        capacity: columns in all.
    """

    joins: ClassVar[bool] = True
    rewind_limit: ClassVar[int | None] = REACH

    def __init__(self, buffer: Tensor, window: int, capacity: int) -> None:
        self.slots, self.window, self.capacity = BufferState(buffer), window, capacity
        self.columns = buffer.new_zeros(buffer.shape[1], buffer.shape[3], dtype=torch.long)
        self.ragged = False  # the slots hold the columns that `columns` says; otherwise the latest
        self._length = self._min_length = 0

    def append(self, keys: Layout, *parts_BKTE: Tensor) -> tuple[tuple[Tensor, ...], Held]:
        """Remember T more columns; returns M columns of each of the N tensors, `[B, K, M, E]`, and which they are.

        Args:
            keys: the layout of all columns so far, these included.
            parts_BKTE: one of each of the N tensors.

        Raises:
            StateError: they are more than the capacity, or the layout is of others; the state stays as it was.
        """
        T = parts_BKTE[0].shape[2]
        before, length = self.slots.length, self._length + T
        if length > self.capacity:
            raise StateError(f"the state holds {self.capacity} tokens, and {length} were given; make it with a larger capacity")
        if keys.shape[1] != length:
            raise StateError(f"the state has seen {length} columns with those of this call, and their layout has "
                             f"{keys.shape[1]}; give it the layout of all of them")
        count, slots = before + T, self.columns.shape[1]
        columns_BM = self._columns(length, T) if self.ragged or (count > slots and keys.padded) else None
        held = Held(count, columns_BM)
        self._length = length
        if count > slots:
            parts_BKME = tuple(torch.cat([mine[:, :, :before], part], dim=2)
                               for mine, part in zip(self.slots.buffer, parts_BKTE, strict=True))
            self._keep(keys, parts_BKME, columns_BM)
            return parts_BKME, held
        if columns_BM is not None:
            self.columns[:, before:count] = columns_BM[:, before:]
        return self.slots.append(*parts_BKTE), held

    def _columns(self, length: int, more: int = 0) -> Tensor:
        """`[B, M]`, the columns that the slots hold, and `more` after them, the last of `length`."""
        count = self.slots.length
        if self.ragged:
            later = torch.arange(length - more, length, device=self.columns.device).expand(len(self.columns), -1)
            return torch.cat([self.columns[:, :count], later], dim=1)
        return torch.arange(length - count - more, length, device=self.columns.device).expand(len(self.columns), -1)

    def _keep(self, keys: Layout, parts_BKME: tuple[Tensor, ...], columns_BM: Tensor | None) -> None:
        """Of the M columns, keep what is needed from `REACH` before the last on."""
        M = parts_BKME[0].shape[2]
        if columns_BM is None:
            kept = [part[:, :, -(self.window - 1 + REACH):] for part in parts_BKME]
        else:
            older = columns_BM[:, :M - REACH]
            real = keys.real.gather(1, older.clamp(min=0))
            order = torch.arange(M, device=real.device)  # real ones count more than others, and the later more than the earlier
            last = (order[:M - REACH] + M * real).topk(self.window - 1, dim=1).indices.flip(1)
            index_BM = torch.cat([last, order[M - REACH:].expand(len(last), -1)], dim=1)
            kept = [part.take_along_dim(index_BM[:, None, :, None], dim=2) for part in parts_BKME]
            self.columns[:, :index_BM.shape[1]] = columns_BM.gather(1, index_BM)
            self.ragged = True
        self.slots.truncate(0)
        self.slots.append(*kept)
        self._min_length = max(self._min_length, self._length - REACH)

    @property
    def length(self) -> int:
        return self._length

    @property
    def min_length(self) -> int:
        return self._min_length

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + self.columns.nbytes

    def reorder(self, index: Tensor) -> None:
        self.slots.reorder(index)
        self.columns = self.columns[index]

    def truncate(self, length: int) -> None:
        if length < self._min_length:
            raise StateError(f"what a window of {self.window} reaches from {length} of {self._length} tokens was dropped; go "
                             f"back to {self._min_length} at least, or start again with an empty state")
        if length < self._length:
            self.slots.truncate(self.slots.length - (self._length - length))
            self._length = length

    def join(self, other: Self, columns: int, capacity: int) -> None:
        both = (self, other)
        count = min(columns, max(one.slots.length for one in both))  # the slots before are padding, as those columns are
        slots, ragged = room(self.window, capacity), self.ragged or other.ragged
        held = self.columns.new_zeros(sum(len(one.columns) for one in both), slots)
        if ragged:  # counted from 1, so that what a row lacks is column -1
            numbers = [latest(one._columns(one._length) + columns - one._length + 1, 1, count) for one in both]
            held[:, :count] = torch.cat(numbers) - 1
        back = min([count, *(one._length - one._min_length for one in both if one._min_length)])
        self.slots.join(other.slots, count, slots)
        self.columns, self.ragged, self.capacity = held, ragged, capacity
        self._length, self._min_length = columns, columns - back
