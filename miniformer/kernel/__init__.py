"""What a plugin author imports: interfaces, layout and mask rules, state, registry, options, hooks, errors.

No component lives here, and nothing is imported from the rest of miniformer. Names load when they are first used, so
that looking up a component by name needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .context import Context, Memory, Record, Signal
    from .errors import (
        AmbiguousComponent,
        DataError,
        Interrupted,
        MiniformerError,
        RunError,
        SpecError,
        StateError,
        UnavailableComponent,
        UnknownComponent,
        UserError,
    )
    from .hooks import activate, hookimpl
    from .interfaces import Attention, FeedForward, Head, Norm, PositionEncoding
    from .kinds import KINDS, Kind
    from .layout import Layout
    from .masks import Causal, Mask, MaskRule, SameDocument, Window
    from .options import options_of
    from .recipes import OptimizerRecipe, SchedulerRecipe
    from .registry import Entry, Registry, current_registry, discover, use_registry
    from .spec import ComponentSpec, Slot, build, resolve
    from .state import State
    from .task import Batch, Example, LossTerm, Task, Tokenizer

_HOME = {
    "context": ("Context", "Memory", "Record", "Signal"),
    "errors": ("AmbiguousComponent", "DataError", "Interrupted", "MiniformerError", "RunError", "SpecError",
               "StateError", "UnavailableComponent", "UnknownComponent", "UserError"),
    "hooks": ("activate", "hookimpl"),
    "interfaces": ("Attention", "FeedForward", "Head", "Norm", "PositionEncoding"),
    "kinds": ("KINDS", "Kind"),
    "layout": ("Layout",),
    "masks": ("Causal", "Mask", "MaskRule", "SameDocument", "Window"),
    "options": ("options_of",),
    "recipes": ("OptimizerRecipe", "SchedulerRecipe"),
    "registry": ("Entry", "Registry", "current_registry", "discover", "use_registry"),
    "spec": ("ComponentSpec", "Slot", "build", "resolve"),
    "state": ("State",),
    "task": ("Batch", "Example", "LossTerm", "Task", "Tokenizer"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
