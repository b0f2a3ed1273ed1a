"""The Assembly interface: a whole model, put together from the components that a config names."""

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
    """One row of a model's account: its name, the components in it by slot, and the modules that hold their parameters."""

    name: str
    slots: Mapping[str, ComponentSpec]
    modules: tuple[nn.Module, ...]


class Assembly(nn.Module, ABC):
    """A whole model: what tasks read, what is trained and saved. Its only size is the model's config.

    Class data:
        has_source: it has an encoder for the batch's source beside the decoder.
    """

    has_source: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def read(self, batch: Batch, context: Context | None = None, readout: Readout | None = None) -> Any:
        """What `readout` makes of the hidden states `[B, T, D]` for a batch and of the head; None: outputs `[B, T, O]`."""

    @property
    def generates(self) -> bool:
        """Whether it can write token by token."""
        return False

    def empty_state(self, batch: int, capacity: int, source_length: int) -> State:
        """What decoding `batch` rows of up to `capacity` tokens keeps between steps, before the first.

        Args:
            source_length: tokens of each source, where it has one.

        Raises:
            StateError: unless overridden; it cannot be run step by step.
        """
        raise StateError(f"{type(self).__name__} defines no empty_state, so it cannot be run step by step")

    def parts(self) -> Iterator[Part]:
        """The rows of its account, which together hold all parameters: its children unless overridden."""
        return (Part(name, {}, (child,)) for name, child in self.named_children())
