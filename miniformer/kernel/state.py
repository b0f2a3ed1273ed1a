"""What a component remembers between decoding steps.

`Attention.init_state` makes a state; the state is passed to `forward` beside the tensor, and only the component that made it
changes it. It is never stored on the module, so one module can serve many sequences at once.

Its methods may be called in any order, and several times between two columns: after them, the next outputs are those of one
pass over the tokens that are left. docs/plugins.md says what each owes, with examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from .errors import StateError
from .renamed import KeepsOldNames


class State(KeepsOldNames, ABC):
    """The memory of B sequences of `length` columns each.

    Class data:
        truncates: can forget its latest columns.
        rewind_limit: if it truncates, how many columns it can always go back from the longest length it has had; None: all.
        joins: can take in the rows of another state of its class.
        grows: can make room for more columns than it was made for.
    """

    truncates: ClassVar[bool] = True
    rewind_limit: ClassVar[int | None] = None
    joins: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    @property
    @abstractmethod
    def length(self) -> int:
        """Columns seen so far, padding included."""

    @property
    def min_length(self) -> int:
        """The shortest length that `truncate` accepts now."""
        return 0 if self.truncates else self.length

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors hold now. It may take memory when it is made, or as columns come."""

    @abstractmethod
    def reorder(self, index: Tensor) -> None:
        """Keep the rows that `index` `[N]` names, in its order.

        Beam search repeats and drops rows in this way, and a batch drops the rows of texts that have ended. Rows that were one
        are apart from then on, and there is as much room as before.
        """

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget all but the first `length` columns, such as tokens of a draft that were rejected (speculative decoding).

        Raises:
            StateError: `length` is less than `min_length`; the state stays as it was.
        """

    def as_static(self, column: Tensor, columns: int) -> State:
        """Give the view of this memory that a compiled step of one token uses: no tensor changes its shape between steps.

        A step writes its token's entry into slot `column` `[1]` and reads the first `columns` slots, filled or not. The layout
        marks unfilled slots as padding; their values must be finite. A step writes into tensors that stay and rebinds no
        attribute.

        Raises:
            StateError: unless overridden; steps are not compiled then.
        """
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def advance_static(self) -> None:
        """Note that a step on the view of `as_static` has filled a column; override both together."""
        raise StateError(f"{type(self).__name__} changes its shapes from step to step")

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` columns, more than there is room for now. What it remembers stays as it is.

        Raises:
            StateError: unless overridden, together with `grows`.
        """
        raise StateError(f"{type(self).__name__} has room for the columns that it was made for")

    def join(self, other: Self, columns: int, capacity: int) -> None:
        """Take in the rows of `other` after its own, so that new requests join a running batch (continuous batching).

        Args:
            other: a state of the same component, which stays as it was and shares no memory with this one.
            columns: how many of the latest columns of each row stay; shorter rows get padding before them.
            capacity: columns that there is room for from now on.

        Raises:
            StateError: unless overridden.
        """
        raise StateError(f"{type(self).__name__} cannot take in rows of another state")
