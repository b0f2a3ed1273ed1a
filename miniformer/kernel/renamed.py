"""Names of an earlier version, kept for one more: each still works, and using it gives a `DeprecationWarning`.

Three kinds of names change: modules that moved, functions and classes of a module, and members of a class that plugins
subclass. All are data here; a table that is empty can go, and so can this file when all are.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REMOVED_IN = "0.3"

MODULES = {
    "miniformer.model.kernels": "miniformer.ops.attention_kernels",
    "miniformer.model.blockwise": "miniformer.ops.blockwise",
    "miniformer.model.products": "miniformer.ops.linear",
    "miniformer.model.cross_entropy": "miniformer.ops.cross_entropy",
    "miniformer.model.sampling": "miniformer.decoding.sampling",
    "miniformer.model.decoding": "miniformer.decoding.loop",
    "miniformer.model.beams": "miniformer.decoding.beam_search",
    "miniformer.model.speculative": "miniformer.decoding.speculative",
    "miniformer.model.static": "miniformer.decoding.compiled",
    "miniformer.model.state": "miniformer.decoding.state",
    "miniformer.model.window_state": "miniformer.decoding.window_state",
    "miniformer.model.attention_maps": "miniformer.inference.attention_maps",
    "miniformer.contracts.check": "miniformer.contracts.kit.check",
    "miniformer.contracts.report": "miniformer.contracts.kit.report",
    "miniformer.contracts.suite": "miniformer.contracts.kit.suite",
    "miniformer.contracts.document": "miniformer.contracts.kit.document",
}
ATTRIBUTES = {
    "miniformer.kernel.masks": {"prepare": "build_mask"},
    "miniformer.kernel.kinds": {"known": "check_kind"},
    "miniformer.kernel.registry": {"State": "Availability", "normal": "normalise_distribution",
                                   "welcome": "allowed_distributions"},
    "miniformer.data.prepare": {"prepare": "prepare_data"},
    "miniformer.train.specs": {"resolved": "with_data_decisions"},
    "miniformer.model.assembly": {"Assembly": "BlockAssembly"},
    "miniformer.decoding.state": {"DecodingState": "ModelState"},
}
MEMBERS = {
    "Component": {"stands_for": "shorthand_for", "breaks": "known_violations"},
    "PositionEncoding": {"prepare": "precompute"},
    "State": {"reach": "rewind_limit", "shortest": "min_length", "static": "as_static", "stepped": "advance_static"},
    "Context": {"reading": "for_memory"},
    "Layout": {"then": "append_columns", "beside": "stack_rows", "following": "next_position"},
}
"""By the name of the kernel's class: the members that were renamed there."""


def warn_of(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is now called `new`."""
    warnings.warn(f"{old} is now {new}; the old name goes with miniformer {REMOVED_IN}", DeprecationWarning,
                  stacklevel=stacklevel)


class KeepsOldNames:
    """Base of classes whose members were renamed: a subclass may define, and anyone may use, a member by its old name."""

    __slots__ = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for base in cls.__mro__:
            if base.__module__.startswith("miniformer.kernel."):
                for old, new in MEMBERS.get(base.__name__, {}).items():
                    _keep(cls, old, new)


def _keep(cls: type, old: str, new: str) -> None:
    """Move a member that `cls` defines under its old name to the new one, and let the old name lead there."""
    defined = vars(cls).get(old)
    if defined is not None and not isinstance(defined, _OldName):
        warn_of(f"{cls.__qualname__}.{old}", new, stacklevel=5)
        setattr(cls, new, defined)
    if new in vars(cls):
        setattr(cls, old, _OldName(cls, old, new))


class _OldName:
    """Reads a member of the class that defines it, so that `super().old` and `self.old` find what they should."""

    def __init__(self, owner: type, old: str, new: str) -> None:
        self.owner, self.old, self.new = owner, old, new

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        warn_of(f"{self.owner.__qualname__}.{self.old}", self.new)
        member = vars(self.owner)[self.new]
        return member.__get__(instance, owner) if hasattr(member, "__get__") else member


def old_attributes(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose functions and classes were renamed."""

    def attribute(name: str) -> Any:
        new = ATTRIBUTES[module].get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of(f"{module}.{name}", new)
        return getattr(sys.modules[module], new)

    return attribute


class _MovedModules(MetaPathFinder, Loader):
    """Finds a module under the name that it had before it moved; asked only for what no other finder knows."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warn_of(old, MODULES[old])
        sys.modules[old] = importlib.import_module(MODULES[old])  # what the import statement returns


def find_moved_modules() -> None:
    """Let modules that moved be imported under their old names."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
