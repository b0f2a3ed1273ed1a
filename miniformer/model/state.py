"""What a whole model remembers between decoding steps: its layers' states, and where every token so far sits."""

from __future__ import annotations

from torch import Tensor

from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout
from miniformer.kernel.state import State


class DecodingState(State):
    """The states of a model's layers, with the layout of all columns so far (None before the first)."""

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
        self.layout = None if self.layout is None or length == 0 else self.layout.columns(length)
        for state in self.layers:
            if state is not None:
                state.truncate(length)
