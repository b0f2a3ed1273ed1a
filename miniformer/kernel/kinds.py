"""The kinds of component, as data: the slots that components fill, in a model and in a run. Importing this imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import SpecError, did_you_mean
from .renamed import old_attributes


@dataclass(frozen=True, slots=True)
class Kind:
    """A slot that components fill.

    Attributes:
        name: its name in specs, flags and entry-point groups.
        sizes: the positional parameters of every constructor of this kind, in order.
        interface: `module:class` that a component subclasses; None: any class will do.
    """

    name: str
    sizes: tuple[str, ...]
    interface: str | None

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"miniformer.{self.name}"

    def base(self) -> type:
        """The interface itself; imports torch."""
        if self.interface is None:
            return object
        module, _, name = self.interface.partition(":")
        base: type = getattr(importlib.import_module(module), name)
        return base


KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind("attention", ("d_model", "n_heads"), "miniformer.kernel.interfaces:Attention"),
    Kind("position", ("d_model", "n_heads", "max_seq_len"), "miniformer.kernel.position_encoding:PositionEncoding"),
    Kind("ffn", ("d_model", "d_ff"), "miniformer.kernel.interfaces:FeedForward"),
    Kind("norm", ("d_model",), "miniformer.kernel.interfaces:Norm"),
    Kind("head", ("d_model", "n_outputs"), "miniformer.kernel.interfaces:Head"),
    Kind("assembly", ("config",), "miniformer.kernel.assembly:Assembly"),
    Kind("task", (), "miniformer.kernel.task:Task"),
    Kind("optimizer", ("lr", "weight_decay"), "miniformer.kernel.recipes:OptimizerRecipe"),
    Kind("scheduler", ("total_steps", "warmup_steps"), "miniformer.kernel.recipes:SchedulerRecipe"),
    Kind("extension", (), None),
)}


def check_kind(kind: str) -> str:
    """Return `kind` if there is a kind of that name.

    Raises:
        SpecError: there is none; the text names the nearest and lists all.
    """
    if kind not in KINDS:
        raise SpecError(f"there is no kind {kind!r}{did_you_mean(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    return kind


def kind_of(interface: type) -> str:
    """The name of the kind whose interface is `interface`."""
    for kind in KINDS.values():
        if kind.interface is not None and kind.interface.endswith(f":{interface.__name__}") and kind.base() is interface:
            return kind.name
    raise TypeError(f"{interface.__name__} is the interface of no kind; kinds: {', '.join(KINDS)}")


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
