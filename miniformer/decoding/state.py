"""What is remembered between decoding steps: buffers of columns, and of a whole model its layers' states and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from miniformer.kernel.context import Memory
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.state import State


class DecodingState(State):
    """The states of a model's layers, with the layout of all columns so far (None before the first)."""

    memory: Memory | None = None

    def __init__(self, layers: list[State | None], capacity: int) -> None:
        self.layers, self.capacity = layers, capacity
        self.layout: Layout | None = None

    def extend(self, layout: Layout) -> Layout:
        """Note that the columns of `layout` follow; returns the layout of all columns.

        Raises:
            StateError: they are more than the capacity; nothing is noted then, and the state stays usable.
        """
        if (length := self.length + layout.shape[1]) > self.capacity:
            raise StateError(f"the state holds {self.capacity} tokens, and {length} were given; make it with a larger "
                             "capacity")
        self.layout = layout if self.layout is None else self.layout.append_columns(layout)
        return self.layout

    @property
    def length(self) -> int:
        return 0 if self.layout is None else self.layout.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.layers if state is not None)

    def reorder(self, index: Tensor) -> None:
        self.layout = None if self.layout is None else self.layout.rows(index)
        for state in self.layers:
            if state is not None:
                state.reorder(index)

    def truncate(self, length: int) -> None:
        for state in self.layers:  # first, so that no layer is ahead of another
            if state is not None and length < state.min_length:
                raise StateError(f"{type(state).__name__} cannot go back from {state.length} tokens to {length}; start again "
                                 "with an empty state")
        self.layout = None if self.layout is None or length == 0 else self.layout.columns(length)
        for state in self.layers:
            if state is not None:
                state.truncate(length)

    @property
    def can_join(self) -> bool:
        """Whether every layer can take in rows."""
        return all(state is None or state.joins for state in self.layers)

    def join(self, other: Self, columns: int, capacity: int) -> None:
        assert self.layout is not None and other.layout is not None
        for state, theirs in zip(self.layers, other.layers, strict=True):
            if state is not None and theirs is not None:
                state.join(theirs, columns, capacity)
        self.layout, self.capacity = self.layout.stack_rows(other.layout, columns), capacity


class BufferState(State):
    """N tensors of the columns so far, one buffer `[N, B, K, C, E]` for C columns."""

    joins: ClassVar[bool] = True

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self._length = buffer, 0

    def append(self, *parts_BKTE: Tensor) -> tuple[Tensor, ...]:
        """Remember T more columns; returns all S columns of each of the N tensors, `[B, K, S, E]`.

        Raises:
            StateError: they are more than the buffer holds; it stays as it was.
        """
        stop, capacity = self._length + parts_BKTE[0].shape[2], self.buffer.shape[3]
        if stop > capacity:
            raise StateError(f"the state holds {capacity} tokens, and {stop} were given; make it with a larger capacity")
        for n, part_BKTE in enumerate(parts_BKTE):
            self.buffer[n, :, :, self._length:stop] = part_BKTE
        self._length = stop
        return tuple(self.buffer[n, :, :, :stop] for n in range(len(parts_BKTE)))

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def as_static(self, column: Tensor, columns: int) -> StaticBuffer:
        self.buffer[:, :, :, self._length:columns] = 0
        return StaticBuffer(self.buffer[:, :, :, :columns].unbind(0), column)

    def advance_static(self) -> None:
        self._length += 1

    def reorder(self, index: Tensor) -> None:
        N, _, K, C, E = self.buffer.shape
        buffer = self.buffer.new_empty(N, len(index), K, C, E)
        buffer[:, :, :, :self._length] = self.buffer[:, index, :, :self._length]  # what is not used yet is not copied
        self.buffer = buffer

    def truncate(self, length: int) -> None:
        self._length = min(length, self._length)

    def join(self, other: Self, columns: int, capacity: int) -> None:
        held = [latest(one.buffer[:, :, :, :one.length], 3, columns) for one in (self, other)]
        N, _, K, _, E = self.buffer.shape
        self.buffer = self.buffer.new_empty(N, sum(part.shape[1] for part in held), K, capacity, E)
        self.buffer[:, :, :, :columns] = torch.cat(held, dim=1)
        self._length = columns


class StaticBuffer(BufferState):
    """A `BufferState` in a compiled step: its N tensors `[B, K, C, E]` apart, so that each is written in place."""

    def __init__(self, parts: Sequence[Tensor], column: Tensor) -> None:
        self.parts, self.column = parts, column

    def append(self, *parts_BKTE: Tensor) -> tuple[Tensor, ...]:
        for part_BKCE, new_BK1E in zip(self.parts, parts_BKTE, strict=True):
            part_BKCE.index_copy_(2, self.column, new_BK1E)
        return tuple(self.parts)


class EncoderDecoderState(DecodingState):
    """The state of a decoder with what it looks at: the memory, and what each cross-attention keeps of it."""

    def __init__(self, layers: list[State | None], cross: list[State | None], memory: Memory, capacity: int) -> None:
        super().__init__(layers, capacity)
        self.cross, self.memory = cross, memory

    @property
    def nbytes(self) -> int:
        assert self.memory is not None
        return super().nbytes + self.memory.hidden.nbytes + sum(state.nbytes for state in self.cross if state is not None)

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        assert self.memory is not None
        self.memory = rows_of(self.memory, index)
        for state in self.cross:
            if state is not None:
                state.reorder(index)

    @property
    def can_join(self) -> bool:
        return super().can_join and all(state is None or state.joins for state in self.cross)

    def join(self, other: Self, columns: int, capacity: int) -> None:
        super().join(other, columns, capacity)
        assert self.memory is not None and other.memory is not None
        self.memory = stack_memories(self.memory, other.memory)
        for state, theirs in zip(self.cross, other.cross, strict=True):
            if state is not None and theirs is not None:
                state.join(theirs, self.memory.layout.shape[1], self.memory.layout.shape[1])


def rows_of(memory: Memory, index: Tensor) -> Memory:
    """The rows of a memory that `index` `[N]` picks, in its order."""
    return Memory(memory.hidden[index], memory.layout.rows(index))


def stack_memories(memory: Memory, other: Memory) -> Memory:
    """The rows of both, the shorter after padding."""
    columns = max(memory.layout.shape[1], other.layout.shape[1])
    hidden = torch.cat([latest(one.hidden, 1, columns) for one in (memory, other)])
    return Memory(hidden, memory.layout.stack_rows(other.layout, columns))


class MemoryState(State):
    """Keys and values `[B, K, S, E]` of a memory, which no step changes."""

    joins: ClassVar[bool] = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def as_static(self, column: Tensor, columns: int) -> MemoryState:
        return self

    def reorder(self, index: Tensor) -> None:
        self.keys, self.values = self.keys[index], self.values[index]

    def truncate(self, length: int) -> None:
        """Nothing is forgotten: the memory is of no step."""

    def join(self, other: Self, columns: int, capacity: int) -> None:
        self.keys, self.values = (torch.cat([latest(one, 2, columns) for one in both])
                                  for both in ((self.keys, other.keys), (self.values, other.values)))
