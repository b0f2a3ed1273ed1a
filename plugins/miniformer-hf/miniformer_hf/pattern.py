"""The language in which an architecture says which spec it is: one pattern, read in both directions.

`fill` makes the spec from the fields of a `config.json`; `match` finds those fields in a spec, or says what does not fit.
A pattern is a mapping like a spec's, whose values are constants, or one of the three classes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from miniformer.kernel import UserError, resolve

KINDS = {"attention": "attention", "cross_attention": "attention", "position": "position", "ffn": "ffn", "norm": "norm",
         "head": "head"}
"""The slots of a spec that hold components, and their kinds."""


@dataclass(frozen=True)
class Field:
    """The value of a field of `config.json`, or what `values` (theirs -> ours) makes of it."""

    name: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class Free:
    """No matter to what the model computes: an import gives `default`, a pattern too, and an export takes any value."""

    default: Any


class Case(NamedTuple):
    """A pattern, and what `config.json` says where it holds; the first field decides between cases."""

    pattern: Any
    where: Mapping[str, Any] = {}


class OneOf:
    """The first case that holds."""

    def __init__(self, *cases: Case) -> None:
        self.cases = cases


class Unsupported(UserError):
    """A field of `config.json` has a value that no spec has."""

    def __init__(self, name: str, value: Any, supported: Sequence[Any]) -> None:
        self.name, self.value, self.supported = name, value, list(dict.fromkeys(supported))
        super().__init__(f"{name} is {value!r}; supported: {', '.join(map(repr, self.supported))}")


def fill(pattern: Any, fields: Mapping[str, Any]) -> Any:
    """The spec that `pattern` has for the fields of a `config.json`.

    Raises:
        Unsupported: a field has a value that the pattern has no place for.
    """
    match pattern:
        case Field(name, None):
            return fields[name]
        case Field(name, values) if values is not None:
            for theirs, ours in values.items():
                if theirs == fields[name]:
                    return ours
            raise Unsupported(name, fields[name], list(values))
        case Free(default):
            return fill(default, fields)
        case OneOf():
            return _first(pattern, fields)
        case Mapping():
            return {name: fill(value, fields) for name, value in pattern.items()}
    return pattern


def _first(pattern: OneOf, fields: Mapping[str, Any]) -> Any:
    refused: list[tuple[int, Unsupported]] = []
    for case in pattern.cases:
        passed = 0
        try:
            for name, wanted in case.where.items():
                if fields[name] != wanted:
                    raise Unsupported(name, fields[name], [wanted])
                passed += 1
            return fill(case.pattern, fields)
        except Unsupported as error:
            refused.append((passed, error))
    most = max(passed for passed, _ in refused)  # the case that came nearest says what is missing
    nearest = [error for passed, error in refused if passed == most]
    name = nearest[0].name
    raise Unsupported(name, fields[name], [value for error in nearest if error.name == name for value in error.supported])


class Problem(NamedTuple):
    """A part of a spec that does not fit: where it stands, what is there, and what would fit."""

    where: str
    value: Any
    choices: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.where} is {self.value!r} instead of {' or '.join(map(repr, dict.fromkeys(self.choices)))}"


@dataclass
class Found:
    """What `match` found.

    Attributes:
        fields: of `config.json`.
        problems: what does not fit; none: it fits.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def join(self, other: Found, where: str) -> None:
        """Add what a part of the spec gave; one field must have one value."""
        self.problems += other.problems
        for name, value in other.fields.items():
            if self.fields.setdefault(name, value) != value:
                self.problems.append(Problem(f"{name} by {where}", value, (self.fields[name],)))


def match(pattern: Any, value: Any, where: str) -> Found:
    """The fields of `config.json` for which `pattern` gives the spec `value`.

    Args:
        pattern: what an architecture has.
        value: a spec, or a part of one, as JSON data with every option filled in.
        where: the path to that part, for sentences.
    """
    match pattern:
        case Field(name, None):
            return Found({name: value})
        case Field(name, values) if values is not None:
            theirs = [key for key, ours in values.items() if ours == value]
            return Found({name: theirs[0]}) if theirs else _unfit(where, value, values.values())
        case Free():
            return Found()
        case OneOf():
            cases = [case for case in pattern.cases if _name(case.pattern) == _name(value)]
            if not cases:
                return _unfit(where, _name(value), [_name(case.pattern) for case in pattern.cases])
            return _nearest([_case(case, value, where) for case in cases])
        case Mapping() if "name" in pattern:
            if value["name"] != pattern["name"]:
                return _unfit(where, value["name"], [pattern["name"]])
            found = Found()
            options = {**resolve(KINDS[where], pattern["name"]).options, **pattern}  # what it does not name has its default
            for name, part in value.items():
                found.join(match(options[name], part, f"{where}.{name}"), f"{where}.{name}")
            return found
    return Found() if pattern == value else _unfit(where, value, [pattern])


def _case(case: Case, value: Any, where: str) -> Found:
    found = match(case.pattern, value, where)
    found.join(Found(dict(case.where)), where)
    return found


def _nearest(tried: Sequence[Found]) -> Found:
    """The case with the fewest problems; others that fail at the same places add what would fit there."""
    best = min(tried, key=lambda found: len(found.problems))
    alike = [found.problems for found in tried if [p.where for p in found.problems] == [p.where for p in best.problems]]
    best.problems = [one._replace(choices=tuple(choice for other in others for choice in other.choices))
                     for one, *others in ((problems[0], *problems) for problems in zip(*alike, strict=True))]
    return best


def _name(value: Any) -> Any:
    """The component that a spec or its pattern names; None: it is no spec."""
    return value["name"] if isinstance(value, Mapping) else None


def _unfit(where: str, value: Any, expected: Iterable[Any]) -> Found:
    return Found(problems=[Problem(where, value, tuple(expected))])
