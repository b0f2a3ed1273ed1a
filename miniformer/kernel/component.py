"""The base of all parts of a model."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from .renamed import KeepsOldNames


class Component(KeepsOldNames, nn.Module, ABC):
    """A part of a model that a spec can name.

    Class data:
        shorthand_for: makes the class a shorthand: a spec that names it is stored as these slots instead. Each is a name,
            or a spec with options: `{"attention": {"name": "mha", "n_kv_heads": 1}, "position": "rope"}`. Its options are
            those of the component that takes its own slot, and options that the user sets win over those set here.
        known_violations: promises of its kind that it does not keep: the name of the contract's property, and why.
    """

    shorthand_for: ClassVar[Mapping[str, Any] | None] = None
    known_violations: ClassVar[Mapping[str, str]] = {}
