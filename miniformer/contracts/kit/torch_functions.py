"""The functions of torch that everything in a process shares: whether some code replaced one, and putting it back."""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import torch
from torch import nn


class TorchFunctions:
    """Public functions, classes and methods of torch, as they are when this is made."""

    def __init__(self) -> None:
        self.before = [vars(owner).copy() for owner in _owners()]

    def replaced(self) -> list[str]:
        """The names of those that were replaced or taken away since then."""
        return [f"{_name_of(owner)}.{name}" for owner, name, _ in self._changes()]

    def restore(self) -> list[str]:
        """Put back what was replaced or taken away, and return its names."""
        names = self.replaced()
        for owner, name, value in self._changes():
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        return names

    def _changes(self) -> list[tuple[Any, str, Any]]:
        """The module or class, the name, and the former value; None: a method was added that hides an inherited one."""
        changes = []
        for owner, before in zip(_owners(), self.before, strict=True):
            now = vars(owner)
            changes += [(owner, name, value) for name, value in before.items()
                        if (new := now.get(name)) is not value and _counts(name, value) and not _is_profiled(new, value)]
            changes += [(owner, name, None) for name in now.keys() - before.keys()
                        if _hides(owner, name) and _counts(name, now[name])]
        return changes


@cache
def _owners() -> list[Any]:
    """The modules and classes that are looked at: torch's most used ones, and all layers, optimizers and schedules."""
    modules = [torch, nn.functional, nn.init, nn.utils, torch.linalg, torch.autograd, torch.optim]
    classes = [value for module in (nn, torch.optim, torch.optim.lr_scheduler) for value in vars(module).values()
               if isinstance(value, type)]
    return [*modules, *dict.fromkeys([torch.Tensor, *classes])]


def _counts(name: str, value: Any) -> bool:
    """Whether this attribute is a function that people call; modules are loaded when first needed, which replaces nothing."""
    if name.startswith("_"):
        return name.startswith("__") and isinstance(value, types.FunctionType)
    return callable(value) or isinstance(value, (staticmethod, classmethod, property))


def _is_profiled(new: Any, value: Any) -> bool:
    """Whether torch itself replaced it: the first optimizer of a class wraps the `step` of the class for the profiler."""
    return bool(getattr(new, "hooked", False)) and getattr(new, "__wrapped__", None) is value


def _hides(owner: Any, name: str) -> bool:
    return isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:])


def _name_of(owner: Any) -> str:
    """The name by which a program calls it, such as `torch.nn.Linear`."""
    if not isinstance(owner, type):
        return str(owner.__name__)
    package = next((module for module in (nn, torch.optim, torch) if vars(module).get(owner.__name__) is owner), None)
    return f"{package.__name__ if package else owner.__module__}.{owner.__name__}"
