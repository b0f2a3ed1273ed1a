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
    rewind_limit: ClassVar[int | None] = None
    joins: ClassVar[bool] = False

    @property
    @abstractmethod
    def length(self) -> int:
        """Columns seen so far, padding included."""

    @property
    def min_length(self) -> int:
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

    def as_static(self, column: Tensor, columns: int) -> State:
        """This memory as a compiled step of one token uses it: no tensor changes shape from step to step.

        A step writes its token's entry into slot `column` `[1]` and is given the first `columns` slots, filled or not. The
        layout says which are filled, the others being padding there; their values must be finite. A step writes into tensors
        that stay: it rebinds no attribute.

        Raises:
            StateError: unless overridden; then steps are not compiled.
        """
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def advance_static(self) -> None:
        """Note that a step in which `as_static` was used has filled a column; overridden with `as_static`."""
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def join(self, other: Self, columns: int, capacity: int) -> None:
        """Take in the rows of `other` after its own (continuous batching).

        Of every row the latest `columns` columns are kept, those before being padding; where a row has fewer, padding comes
        before them. From now on there is room for `capacity` columns.

        Raises:
            StateError: unless overridden.
        """
        raise StateError(f"{type(self).__name__} cannot take in rows of another state")
