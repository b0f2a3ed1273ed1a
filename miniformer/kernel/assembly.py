"""The Assembly interface: a whole model, made of the components that a config names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from .context import Context
from .errors import StateError
from .interfaces import Head
from .spec import ComponentSpec
from .state import State
from .task import Batch

Readout = Callable[[Tensor, Head], Any]


class Part(NamedTuple):
    """A part of a model whose parameters are counted together: name, components by slot, and modules with the parameters."""

    name: str
    slots: Mapping[str, ComponentSpec]
    modules: tuple[nn.Module, ...]


class Assembly(nn.Module, ABC):
    """A whole model, which tasks read and which is trained and saved. Its only size is the model's config.

    Class data:
        has_source: it has an encoder, for the source of a batch, beside its decoder.
    """

    has_source: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def read(self, batch: Batch, context: Context | None = None, readout: Readout | None = None) -> Any:
        """Run the model on a batch.

        Args:
            batch: the inputs.
            context: where components record values; a fresh one unless given.
            readout: called with the hidden states `[B, T, D]` and the head; its result is returned. None: outputs `[B, T, O]`.
        """

    @property
    def generates(self) -> bool:
        """Whether it can generate, token by token."""
        return False

    def empty_state(self, batch: int, capacity: int, source_length: int) -> State:
        """Make the state that decoding starts from.

        Args:
            batch: rows.
            capacity: most tokens of a row.
            source_length: tokens of each source, if the model has one.

        Raises:
            StateError: unless overridden; the model cannot be run step by step then.
        """
        raise StateError(f"{type(self).__name__} defines no empty_state, so it cannot be run step by step")

    def parts(self) -> Iterator[Part]:
        """The parts by which its parameters are counted, which together hold all of them; by default its child modules."""
        return (Part(name, {}, (child,)) for name, child in self.named_children())
