"""What is remembered between decoding steps: buffers of columns, and of a whole model its layers' states and memory."""

from __future__ import annotations

from torch import Tensor

from miniformer.kernel.context import Memory
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout
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
        self.layout = layout if self.layout is None else self.layout.then(layout)
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
            if state is not None and not state.truncates and length < state.length:
                raise StateError(f"{type(state).__name__} cannot go back from {state.length} tokens to {length}; start again "
                                 "with an empty state")
        self.layout = None if self.layout is None or length == 0 else self.layout.columns(length)
        for state in self.layers:
            if state is not None:
                state.truncate(length)


class BufferState(State):
    """N tensors of the columns so far, one buffer `[N, B, K, C, E]` for C columns."""

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

    def reorder(self, index: Tensor) -> None:
        self.buffer = self.buffer.index_select(1, index)

    def truncate(self, length: int) -> None:
        self._length = min(length, self._length)


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


def rows_of(memory: Memory, index: Tensor) -> Memory:
    """The rows of a memory that `index` `[N]` picks, in its order."""
    return Memory(memory.hidden[index], memory.layout.rows(index))


class MemoryState(State):
    """Keys and values `[B, K, S, E]` of a memory, which no step changes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def reorder(self, index: Tensor) -> None:
        self.keys, self.values = self.keys[index], self.values[index]

    def truncate(self, length: int) -> None:
        """Nothing is forgotten: the memory is of no step."""
