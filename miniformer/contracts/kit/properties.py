"""Properties: promises that every component of a kind makes, each with a check of one drawn example.

A property is a function of a `Case`, registered with `@contract`. Its docstring has three parts: the promise, the damage that a
broken promise does (`In training:`), and a bug of the real world that broke it (`Seen:`, may be left out). Reports and
`docs/contracts.md` show these parts.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .component_under_test import ComponentUnderTest

PROMISE_MODULES = ("construction", "module", "magnitudes", "precision", "history", "gradients", "channels",
                   "attention_visibility", "attention", "attention_bias", "attention_gradients", "decoding", "states",
                   "position", "position_range", "feedforward", "norm", "head", "task", "task_data", "task_limits",
                   "task_without_targets", "task_metrics", "recipes", "schedules", "extension")
"""The modules of `miniformer.contracts.promises`, in the order in which reports show their properties."""

ABILITIES, ABILITIES_PROMISE = "declared-abilities-are-checked", "Everything that the class declares was checked."
"""The name of the last result of a report, which says whether every declared ability was checked by some property."""

Check = Callable[[Any], None]


class Broken(AssertionError):
    """A component did not keep a promise; the text says what was seen."""


class Skip(Exception):
    """A property has nothing to check; the text says why."""


@dataclass(frozen=True)
class Property:
    """A promise and its check.

    Attributes:
        name: its name in reports, `known_violations` and test ids.
        kinds: the kinds of component that make the promise.
        check: raises if one example breaks the promise.
        proves: the declared abilities that this check proves.
        skip: gives the reason why the promise does not concern a component, or "" if it does.
        examples: factor on the number of examples, below 1 for slow checks; 0 means one example.
        thorough: whether it is checked in thorough checks only.
        note: whether a broken promise is reported as a note instead of a failure.
    """

    name: str
    kinds: frozenset[str]
    check: Check
    proves: frozenset[str] = frozenset()
    skip: Callable[[ComponentUnderTest], str] = lambda under_test: ""
    examples: float = 1.0
    thorough: bool = False
    note: bool = False

    @property
    def promise(self) -> str:
        """The promise itself."""
        return self._parts()[0]

    @property
    def consequence(self) -> str:
        """The damage that a broken promise does in training."""
        return self._parts()[1]

    @property
    def seen(self) -> str:
        """A bug of the real world that broke the promise; "" if none is named."""
        return self._parts()[2]

    def _parts(self) -> tuple[str, str, str]:
        return parts_of(self.name, inspect.getdoc(self.check))


def parts_of(name: str, docstring: str | None) -> tuple[str, str, str]:
    """The promise, the damage in training, and the bug that was seen, out of the docstring of a property's check.

    Raises:
        TypeError: the docstring does not say what a broken promise does in training.
    """
    parts = re.fullmatch(r"(.+?) In training: (.+?)(?: Seen: (.+))?", " ".join((docstring or "").split()))
    if parts is None:
        raise TypeError(f"the docstring of property {name} has no part 'In training:'")
    return parts[1], parts[2], parts[3] or ""


PROPERTIES: list[Property] = []


def contract(*kinds: str, proves: Iterable[str] = (), skip: Callable[[ComponentUnderTest], str] = lambda under_test: "",
             examples: float = 1.0, thorough: bool = False, note: bool = False) -> Callable[[Check], Check]:
    """Register a check as a property of some kinds, under the function's name with dashes; for the arguments see `Property`."""

    def register(check: Check) -> Check:
        name = check.__name__.replace("_", "-")
        PROPERTIES.append(Property(name, frozenset(kinds), check, frozenset(proves), skip, examples, thorough, note))
        return check

    return register


def properties_of(kind: str) -> list[Property]:
    """The properties of a kind, in the order of their modules."""
    for module in PROMISE_MODULES:
        importlib.import_module(f"miniformer.contracts.promises.{module}")
    order = [f"miniformer.contracts.promises.{module}" for module in PROMISE_MODULES]
    return sorted((p for p in PROPERTIES if kind in p.kinds), key=lambda p: order.index(p.check.__module__))
