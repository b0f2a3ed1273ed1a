"""The state of an attention with a window: the columns that the window can still reach, however long the text is.

Shapes: N tensors, B batch, K heads, E width, W window; T columns of this call, S columns so far, M columns that are held, C
slots.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.context import Context
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.masks import Mask, MaskRule

from .state import AttentionState, BufferState, Visible

REWIND = 32
"""Columns by which a window's state can always go back. As many are gathered before the oldest are dropped."""


def slots_needed(window: int, capacity: int) -> int:
    """The number of slots C that a `WindowState` needs for texts of `capacity` columns."""
    return min(capacity, window - 1 + 2 * REWIND)


class WindowState(AttentionState):
    """N tensors of the columns that a window can still reach, in a buffer `[N, B, K, C, E]` of C slots.

    When the slots are full, the last `REWIND` columns stay as they are, so that `truncate` can go back to them. Of the
    columns before those, each row keeps its last W - 1 real tokens. A document is one run of columns (padding aside), so no
    window reaches further. Which columns are dropped depends on shapes and the layout only, so nothing waits for a GPU.

    Args:
        buffer: with `slots_needed(window, capacity)` slots.
        window: W.
        capacity: the most columns that the text may have.
    """

    joins: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    rewind_limit: ClassVar[int | None] = REWIND

    def __init__(self, buffer: Tensor, window: int, capacity: int) -> None:
        self.slots, self.window, self.capacity = BufferState(buffer), window, capacity
        self.columns = buffer.new_zeros(buffer.shape[1], buffer.shape[3], dtype=torch.long)
        self.ragged = False  # True: `columns` says which column each slot holds. False: the slots hold the latest columns
        self._length = self._min_length = 0

    def append(self, parts_BKTE: tuple[Tensor, ...], context: Context, rule: MaskRule | None) -> Visible:
        parts_BKME, columns_BM = self._hold(parts_BKTE, context.keys or context.layout)
        count = parts_BKME[0].shape[2]
        return parts_BKME, _cut_mask(context.mask(rule), count, columns_BM), _cut_bias(context.bias, count, columns_BM)

    def _hold(self, parts_BKTE: tuple[Tensor, ...], keys: Layout) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Take in T columns; return M columns of each tensor, and which columns they are (None: the latest M)."""
        T = parts_BKTE[0].shape[2]
        before, length = self.slots.length, self._length + T
        if length > self.capacity:
            raise StateError(f"the state holds {self.capacity} tokens, and {length} were given; make it with a larger capacity")
        if keys.shape[1] != length:
            raise StateError(f"the state has seen {length} columns with those of this call, and their layout has "
                             f"{keys.shape[1]}; give it the layout of all of them")
        if before == 0:
            self.columns = self.columns.to(parts_BKTE[0].device)
        count, slots = before + T, self.columns.shape[1]
        columns_BM = self._held_columns(length, T) if self.ragged or (count > slots and keys.padded) else None
        self._length = length
        if count > slots:
            # without any held columns, the new ones alone decide the dtype
            parts_BKME = parts_BKTE if before == 0 else tuple(
                torch.cat([held[:, :, :before], part], dim=2) for held, part in zip(self.slots.buffer, parts_BKTE, strict=True))
            self._drop_oldest(keys, parts_BKME, columns_BM)
            return parts_BKME, columns_BM
        if columns_BM is not None:
            self.columns[:, before:count] = columns_BM[:, before:]
        return self.slots.write(parts_BKTE), columns_BM

    def _held_columns(self, length: int, new: int = 0) -> Tensor:
        """`[B, M]`: which columns the slots hold, and after them the `new` last ones of `length`."""
        count = self.slots.length
        if self.ragged:
            new_columns = torch.arange(length - new, length, device=self.columns.device).expand(len(self.columns), -1)
            return torch.cat([self.columns[:, :count], new_columns], dim=1)
        return torch.arange(length - count - new, length, device=self.columns.device).expand(len(self.columns), -1)

    def _drop_oldest(self, keys: Layout, parts_BKME: tuple[Tensor, ...], columns_BM: Tensor | None) -> None:
        """Keep only what is needed to go back by `REWIND` columns and continue from there."""
        M = parts_BKME[0].shape[2]
        if columns_BM is None:
            needed = [part[:, :, -(self.window - 1 + REWIND):] for part in parts_BKME]
        else:
            older = columns_BM[:, :M - REWIND]
            real = keys.real.gather(1, older.clamp(min=0))
            order = torch.arange(M, device=real.device)
            rank = order[:M - REWIND] + M * real  # real tokens before padding, and later columns before earlier ones
            latest_real = rank.topk(self.window - 1, dim=1).indices.flip(1)
            index_BM = torch.cat([latest_real, order[M - REWIND:].expand(len(latest_real), -1)], dim=1)
            needed = [part.take_along_dim(index_BM[:, None, :, None], dim=2) for part in parts_BKME]
            self.columns[:, :index_BM.shape[1]] = columns_BM.gather(1, index_BM)
            self.ragged = True
        self.slots.truncate(0)
        self.slots.write(needed)
        self._min_length = max(self._min_length, self._length - REWIND)

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

    def grow(self, capacity: int) -> None:
        self.capacity, held = capacity, self.columns.shape[1]
        if (slots := slots_needed(self.window, capacity)) > held:
            self.slots.grow(slots)
            self.columns = F.pad(self.columns, (0, slots - held))

    def join(self, other: Self, columns: int, capacity: int) -> None:
        states = (self, other)
        # Slots before the longest text's are dropped: they hold padding, as the columns there do
        count = min(columns, max(state.slots.length for state in states))
        slots, ragged = slots_needed(self.window, capacity), self.ragged or other.ragged
        held_columns = self.columns.new_zeros(sum(len(state.columns) for state in states), slots)
        if ragged:  # counted from 1, so that the zeros with which `latest` fills a short row become column -1, which is none
            numbers = [latest(state._held_columns(state._length) + columns - state._length + 1, 1, count) for state in states]
            held_columns[:, :count] = torch.cat(numbers) - 1
        rewind = min([count, *(state._length - state._min_length for state in states if state._min_length)])
        self.slots.join(other.slots, count, slots)
        self.columns, self.ragged, self.capacity = held_columns, ragged, capacity
        self._length, self._min_length = columns, columns - rewind


def _cut_mask(mask: Mask, count: int, columns_BM: Tensor | None) -> Mask:
    """The mask over all S columns, for the columns `columns_BM` (negative: none) or, without them, for the latest `count`."""
    assert mask.allowed is not None, "a window is no plain mask"
    if columns_BM is None:
        return Mask(mask.allowed[..., -count:])
    columns_B11M = columns_BM[:, None, None]
    return Mask(mask.allowed.take_along_dim(columns_B11M.clamp(min=0), dim=-1) & (columns_B11M >= 0))


def _cut_bias(bias: Tensor | None, count: int, columns_BM: Tensor | None) -> Tensor | None:
    """The bias `[B or 1, H, T, S]` for M of its columns, chosen as in `_cut_mask`."""
    if bias is None:
        return None
    if columns_BM is None:
        return bias[..., -count:]
    return bias.take_along_dim(columns_BM[:, None, None].clamp(min=0), dim=-1)
