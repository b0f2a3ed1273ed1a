"""What a component remembers between decoding steps: made by `Attention.init_state`, owned and changed only by it.

A state is passed in with the tensor and never hung on the module, so one module can serve many sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from .errors import StateError


class State(ABC):
    """The memory of B sequences after `length` tokens each.

    Class data:
        truncates: can go back.
        reach: if it truncates, by how many columns it can always go back from the most that it has seen; None: all.
        joins: can take in the rows of another.
    """

    truncates: ClassVar[bool] = True
    reach: ClassVar[int | None] = None
    joins: ClassVar[bool] = False

    @property
    @abstractmethod
    def length(self) -> int:
        """Columns seen so far, padding included."""

    @property
    def shortest(self) -> int:
        """The least length that it can go back to now."""
        return 0 if self.truncates else self.length

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors hold."""

    @abstractmethod
    def reorder(self, index: Tensor) -> None:
        """Keep the rows that `index` `[N]` names, in its order (beam search, requests that end)."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget all but the first `length` columns (speculative decoding).

        Raises:
            StateError: this state cannot go back so far; it stays as it was.
        """

    def static(self, column: Tensor, columns: int) -> State:
        """The same memory for steps of one token in a compiled graph, in which no shape changes from step to step.

        What is appended goes to `column` `[1]`, which is another each time, and the first `columns` columns are given back,
        which are more than are filled. Which of them are the layout says, where the others are padding; their values must be
        numbers. What changes is written into tensors that stay: no step puts anything else into an attribute.

        Raises:
            StateError: unless overridden; then steps are not compiled.
        """
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def stepped(self) -> None:
        """Note that a step in which `static` was used has filled a column; overridden with `static`."""
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def join(self, other: Self, columns: int, capacity: int) -> None:
        """Take in the rows of `other` after its own (continuous batching).

        Of every row the latest `columns` columns are kept, those before being padding; where a row has fewer, padding comes
        before them. From now on there is room for `capacity` columns.

        Raises:
            StateError: unless overridden.
        """
        raise StateError(f"{type(self).__name__} cannot take in rows of another state")
