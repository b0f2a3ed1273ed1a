"""The component that is checked: a class with options, found in the registry by name or passed as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from miniformer.kernel.conformance import why_not_a_component
from miniformer.kernel.errors import SpecError, StateError
from miniformer.kernel.kinds import KINDS, check_kind
from miniformer.kernel.options import arguments, complete
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec

from .class_target import kind_of_class, load_class, names_a_class


@dataclass(frozen=True)
class ComponentUnderTest:
    """A component that is checked.

    Attributes:
        kind: its kind.
        name: its name in reports.
        cls: its class.
        fixed: options that the caller of the check chose; they are not drawn.
        data: a JSONL file with records, for a task without embedded data.
    """

    kind: str
    name: str
    cls: Any
    fixed: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None

    @classmethod
    def of(cls, kind: str | None, target: Any, data: str | None = None,
           options: Mapping[str, Any] | None = None) -> ComponentUnderTest:
        """Make one from a registered name, a spec with options, or a class, which need not be registered.

        Args:
            kind: its kind; of a class, None means the kind whose interface it implements.
            target: the name, the spec, the class, or a class that is written `module:Class`.
            data: a JSONL file with records, for a task without embedded data.
            options: options that are not drawn, in addition to those of a spec.

        Raises:
            UserError: no component has this name, the class cannot be a component of this kind, or its options are wrong.
        """
        if isinstance(target, str) and names_a_class(target):
            target = load_class(target)
        if isinstance(target, type):
            kind = kind_of_class(target) if kind is None else check_kind(kind)
            if problem := why_not_a_component(KINDS[kind], target):
                raise SpecError(problem)
            if options:
                complete(target, dict(options), f"{kind} {target.__name__}")
            return cls(kind, target.__name__, target, dict(options or {}), data)
        if kind is None:
            raise SpecError("a component to check has a kind; pass it as `kind`, or pass a class")
        spec = ComponentSpec.model_validate(target)
        fixed = {**spec.options, **(options or {})}
        entry, loaded = current_registry().find(check_kind(kind), spec.name), current_registry().load(kind, spec.name)
        complete(loaded, fixed, f"{kind} {entry.name}")
        return cls(kind, entry.saved, loaded, fixed, data)

    def build(self, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """An instance with these sizes, these options and the fixed ones.

        Raises:
            ValueError: the component refuses these sizes and options.
        """
        try:
            keywords = arguments(self.cls, complete(self.cls, {**options, **self.fixed}, self.name))
        except SpecError as error:
            raise ValueError(str(error)) from error
        return self.cls(*(sizes[name] for name in KINDS[self.kind].sizes), **keywords)

    @cached_property
    def drawn_options(self) -> Any:
        """The strategy of hypothesis that options are drawn from."""
        from .drawing import options

        return options(self.cls)

    @property
    def known_violations(self) -> Mapping[str, str]:
        """The promises that the component declares it does not keep, each with the reason."""
        declared: Mapping[str, str] = getattr(self.cls, "known_violations", {})
        return declared

    def _state(self) -> Any:
        """An empty state of an attention; None if it needs no state."""
        return self.build({"d_model": 16, "n_heads": 2}, {}).init_state(1, 1)

    @cached_property
    def has_state(self) -> bool:
        """Whether an attention can be run step by step."""
        try:
            self._state()
        except StateError:
            return False
        return True

    @cached_property
    def static(self) -> bool:
        """Whether the state of an attention can be part of a compiled step."""
        import torch

        state = self._state() if self.has_state else None
        try:
            return state is not None and state.as_static(torch.zeros(1, dtype=torch.long), 0) is not None
        except StateError:
            return False

    @cached_property
    def joins(self) -> bool:
        """Whether the state of an attention can take in the rows of another."""
        return self.has_state and getattr(self._state(), "joins", False)

    @cached_property
    def abilities(self) -> frozenset[str]:
        """The abilities that the class declares, by the names that properties list in `proves`."""
        names = set[str]()
        if self.kind == "attention":
            names |= {name for name in ("causal_only", "cross") if getattr(self.cls, name)}
            names |= {f"applies {hook}" for hook in self.cls.applies}
            of_state = {"state": self.has_state, "joins": self.joins, "static": self.static}
            names |= {name for name, able in of_state.items() if able}
        elif self.kind == "position":
            names |= {name for name in ("extrapolates", "learns_bias", "relative") if getattr(self.cls, name)}
            names |= {f"hook {hook}" for hook in self.cls.hooks()}
        elif self.kind == "task":
            names |= {name for name in ("packs", "has_source", "additive") if getattr(self.cls, name)}
        return frozenset(names)
