"""What is remembered between decoding steps: by each attention, and by a whole model.

An attention appends the columns of a call to its state. The state returns what the queries of that call look at: the
columns that it holds, with the mask and the bias over exactly those. So no attention needs to know which kind of state it has.

Shapes: N tensors, B batch, K key/value heads, E width, T columns of this call, S columns so far, C columns that fit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.masks import Mask, MaskRule
from miniformer.kernel.renamed import old_attributes
from miniformer.kernel.state import State

from .memory import rows_of, stack_memories

ROOM = 1024
"""Columns that a state that can grow has free at first; when they are full, its room is doubled."""
Visible = tuple[tuple[Tensor, ...], Mask, Tensor | None]
"""What queries look at: N tensors `[B, K, S, E]` such as keys and values, and the mask and the bias over their S columns."""


class AttentionState(State):
    """The state of one attention layer: it takes the columns of each call, and returns what the call's queries look at."""

    @abstractmethod
    def append(self, parts_BKTE: tuple[Tensor, ...], context: Context, rule: MaskRule | None) -> Visible:
        """Remember the T columns of a call; return everything that its queries look at.

        Args:
            parts_BKTE: N tensors of the new columns, such as keys and values; empty where nothing is new, as in a memory.
            context: the context of the call. Its `keys` are the layout of all columns, with those of this call last.
            rule: the attention's own mask rule.

        Raises:
            StateError: the columns do not fit; the state stays as it was.
        """


def visible(parts_BKTE: tuple[Tensor, ...], context: Context, rule: MaskRule | None, state: State | None) -> Visible:
    """What the queries of a call look at: with a state, also the columns that it remembers. See `AttentionState.append`."""
    if state is None:
        return parts_BKTE, context.mask(rule), context.bias
    own_state: Any = state  # an attention is only ever given a state that it made itself
    seen: Visible = own_state.append(parts_BKTE, context, rule)
    return seen


class ModelState(State):
    """The states of a model's layers, and the layout of all columns so far (None before the first).

    Masks are made from that layout, so the layers' states need to know nothing about masks.

    Args:
        layers: the state of each layer, or None.
        capacity: columns that there is room for.

    Attributes:
        limit: columns for which room is made when they come; a greater one than `capacity` needs layers that can grow.
    """

    memory: Memory | None = None

    def __init__(self, layers: list[State | None], capacity: int) -> None:
        self.layers, self.capacity, self.limit = layers, capacity, capacity
        self.layout: Layout | None = None

    def extend(self, layout: Layout) -> Layout:
        """Note that the columns of `layout` come next; return the layout of all columns.

        Raises:
            StateError: they exceed the limit. Nothing is noted then, and the state stays usable.
        """
        if (length := self.length + layout.shape[1]) > self.limit:
            raise _full(self.limit, length)
        self.make_room(length)
        self.layout = layout if self.layout is None else self.layout.append_columns(layout)
        return self.layout

    def make_room(self, length: int) -> None:
        """Have room for `length` columns, up to `limit`: at least twice as many as before, so that few are copied often."""
        if length > self.capacity:
            self.grow(min(self.limit, max(length, 2 * self.capacity)))

    @property
    def can_grow(self) -> bool:
        """Whether the state of every layer can make room for more columns than it was made for."""
        return all(state is None or state.grows for state in self.layers)

    def grow(self, capacity: int) -> None:
        for state in filter(None, self.layers):
            state.grow(capacity)
        self.capacity, self.limit = capacity, max(capacity, self.limit)

    @property
    def length(self) -> int:
        return 0 if self.layout is None else self.layout.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.layers if state is not None)

    def reorder(self, index: Tensor) -> None:
        self.layout = None if self.layout is None else self.layout.rows(index)
        for state in filter(None, self.layers):
            state.reorder(index)

    def truncate(self, length: int) -> None:
        for state in self.layers:  # all are asked before any changes, so that no layer is ahead of another
            if state is not None and length < state.min_length:
                raise StateError(f"{type(state).__name__} cannot go back from {state.length} tokens to {length}; start again "
                                 "with an empty state")
        self.layout = None if self.layout is None or length == 0 else self.layout.columns(length)
        for state in filter(None, self.layers):
            state.truncate(length)

    @property
    def can_join(self) -> bool:
        """Whether the state of every layer can take in the rows of another."""
        return all(state is None or state.joins for state in self.layers)

    def join(self, other: Self, columns: int, capacity: int) -> None:
        assert self.layout is not None and other.layout is not None
        room = min(capacity, columns + ROOM) if self.can_grow else capacity
        for state, joining in zip(self.layers, other.layers, strict=True):
            if state is not None and joining is not None:
                state.join(joining, columns, room)
        self.layout, self.capacity, self.limit = self.layout.stack_rows(other.layout, columns), room, capacity


class BufferState(AttentionState):
    """All columns so far, in one buffer `[N, B, K, C, E]`, whose memory is taken at the start and when it grows.

    The first columns decide its dtype and device: those of the weights from which they are made may be others.
    """

    joins: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self._length = buffer, 0

    def append(self, parts_BKTE: tuple[Tensor, ...], context: Context, rule: MaskRule | None) -> Visible:
        return self.write(parts_BKTE), context.mask(rule), context.bias

    def write(self, parts_BKTE: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Put T more columns into the buffer; return all S columns of each of the N tensors, `[B, K, S, E]`.

        Raises:
            StateError: they do not fit; the state stays as it was.
        """
        stop, capacity = self._length + parts_BKTE[0].shape[2], self.buffer.shape[3]
        if stop > capacity:
            raise _full(capacity, stop)
        new = parts_BKTE[0]
        if not self._length and (new.dtype, new.device) != (self.buffer.dtype, self.buffer.device):
            self.buffer = torch.empty(self.buffer.shape, dtype=new.dtype, device=new.device)
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
        self.buffer[:, :, :, self._length:columns] = 0  # fresh memory may hold NaN, which a mask does not keep out
        return StaticBuffer(self.buffer[:, :, :, :columns].unbind(0), column)

    def advance_static(self) -> None:
        self._length += 1

    def reorder(self, index: Tensor) -> None:
        N, _, K, C, E = self.buffer.shape
        buffer = self.buffer.new_empty(N, len(index), K, C, E)
        buffer[:, :, :, :self._length] = self.buffer[:, index, :, :self._length]  # unused columns are not copied
        self.buffer = buffer

    def truncate(self, length: int) -> None:
        self._length = min(length, self._length)

    def grow(self, capacity: int) -> None:
        N, B, K, _, E = self.buffer.shape
        buffer = self.buffer.new_empty(N, B, K, capacity, E)
        buffer[:, :, :, :self._length] = self.buffer[:, :, :, :self._length]
        self.buffer = buffer

    def join(self, other: Self, columns: int, capacity: int) -> None:
        parts = [latest(state.buffer[:, :, :, :state.length], 3, columns) for state in (self, other)]
        N, _, K, _, E = self.buffer.shape
        self.buffer = self.buffer.new_empty(N, sum(part.shape[1] for part in parts), K, capacity, E)
        self.buffer[:, :, :, :columns] = torch.cat(parts, dim=1)
        self._length = columns


class StaticBuffer(BufferState):
    """A `BufferState` as a compiled step has it: its N tensors `[B, K, C, E]` are apart, so that each is written in place.

    Every step sees all C columns; the layout says which of them are filled.
    """

    def __init__(self, parts: Sequence[Tensor], column: Tensor) -> None:
        self.parts, self.column = parts, column

    def write(self, parts_BKTE: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for part_BKCE, new_BK1E in zip(self.parts, parts_BKTE, strict=True):
            part_BKCE.index_copy_(2, self.column, new_BK1E)
        return tuple(self.parts)


class EncoderDecoderState(ModelState):
    """The state of a decoder that looks at a memory: the memory, and what each cross-attention keeps of it."""

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
        memory_columns = self.memory.layout.shape[1]
        for state, joining in zip(self.cross, other.cross, strict=True):
            if state is not None and joining is not None:
                state.join(joining, memory_columns, memory_columns)


class MemoryState(AttentionState):
    """Keys and values `[B, K, S, E]` of a memory, for a cross-attention. No step changes them."""

    joins: ClassVar[bool] = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def append(self, parts_BKTE: tuple[Tensor, ...], context: Context, rule: MaskRule | None) -> Visible:
        assert not parts_BKTE, "a memory was remembered as a whole, and grows by nothing"
        return (self.keys, self.values), context.mask(rule), context.bias

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
        """Nothing is forgotten: a memory belongs to no step."""

    def join(self, other: Self, columns: int, capacity: int) -> None:
        self.keys = torch.cat([latest(state.keys, 2, columns) for state in (self, other)])
        self.values = torch.cat([latest(state.values, 2, columns) for state in (self, other)])


def _full(capacity: int, length: int) -> StateError:
    return StateError(f"the state holds {capacity} tokens, and {length} were given; make it with a larger capacity")


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
