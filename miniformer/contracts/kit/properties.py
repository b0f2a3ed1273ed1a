"""What a property is: a promise of every component of a kind, as a check of one drawn example, with what it is worth.

A property is a function of a `Case` whose docstring tells people three things: what is promised (the first sentence), what
goes wrong where the promise is broken (`In training:`), and where that was seen (`Seen:`). The modules of properties register
theirs here with `@contract`; `docs/contracts.md` is made of the docstrings.
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

MODULES = ("construction", "module", "attention_visibility", "attention", "decoding", "position", "feedforward", "norm", "head",
           "task", "task_data", "recipes", "extension")
"""The modules of this package that hold properties, in the order in which they are shown."""

Check = Callable[[Any], None]


class Broken(AssertionError):
    """A component did not keep a promise; the text says what was seen."""


class Skip(Exception):
    """There is nothing to check here; the text says why."""


@dataclass(frozen=True)
class Property:
    """A promise and its check.

    Attributes:
        name: what reports, `known_violations` and test ids call it.
        kinds: the kinds of component that make the promise.
        check: raises where one example breaks it.
        proves: the declared abilities that it is the proof of.
        skip: why it does not concern a component; "" where it does.
        examples: part of the usual number of examples, for checks that cost more.
        thorough: is checked only when asked to be thorough.
        note: breaking it is told and fails nothing.
    """

    name: str
    kinds: frozenset[str]
    check: Check
    proves: frozenset[str] = frozenset()
    skip: Callable[[ComponentUnderTest], str] = lambda subject: ""
    examples: float = 1.0
    thorough: bool = False
    note: bool = False

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return self._parts()[0]

    @property
    def consequence(self) -> str:
        """What a broken promise means in training."""
        return self._parts()[1]

    @property
    def seen(self) -> str:
        """A bug of the real world that this check finds."""
        return self._parts()[2]

    def _parts(self) -> tuple[str, str, str]:
        text = " ".join((inspect.getdoc(self.check) or "").split())
        found = re.fullmatch(r"(.+?) In training: (.+?)(?: Seen: (.+))?", text)
        if found is None:
            raise TypeError(f"the docstring of property {self.name} has no part 'In training:'")
        return found[1], found[2], found[3] or ""


PROPERTIES: list[Property] = []


def contract(*kinds: str, proves: Iterable[str] = (), skip: Callable[[ComponentUnderTest], str] = lambda subject: "",
             examples: float = 1.0, thorough: bool = False, note: bool = False) -> Callable[[Check], Check]:
    """Register a check as a property of some kinds, under its own name with dashes."""

    def register(check: Check) -> Check:
        name = check.__name__.replace("_", "-")
        PROPERTIES.append(Property(name, frozenset(kinds), check, frozenset(proves), skip, examples, thorough, note))
        return check

    return register


def properties_of(kind: str) -> list[Property]:
    """The properties of a kind, in the order of their modules."""
    for module in MODULES:
        importlib.import_module(f"miniformer.contracts.promises.{module}")
    order = [f"miniformer.contracts.promises.{module}" for module in MODULES]
    return sorted((p for p in PROPERTIES if kind in p.kinds), key=lambda p: order.index(p.check.__module__))
