"""Patterns, which relate the fields of a `config.json` to a spec of miniformer, in both directions.

`fill` makes a spec from the fields of a `config.json`. `match` finds those fields in a spec, or the parts that do not fit.
A pattern is a mapping with the keys of a spec. Its values are constants, mappings, or instances of `Field`, `Free` and `OneOf`.
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
    """The value of a field of `config.json`; with `values` (theirs -> ours), the value that it is translated to."""

    name: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class Free:
    """A part that does not change what the model computes: an import uses `default`, which may be a pattern, and an export
    accepts any value."""

    default: Any


class Case(NamedTuple):
    """A pattern that applies if fields of `config.json` have the values in `where`; the first field decides between cases."""

    pattern: Any
    where: Mapping[str, Any] = {}


class OneOf:
    """Several cases, of which the first that applies counts."""

    def __init__(self, *cases: Case) -> None:
        self.cases = cases


class Unsupported(UserError):
    """A field of `config.json` has a value that no spec can express."""

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
            for name, required in case.where.items():
                if fields[name] != required:
                    raise Unsupported(name, fields[name], [required])
                passed += 1
            return fill(case.pattern, fields)
        except Unsupported as error:
            refused.append((passed, error))
    most = max(passed for passed, _ in refused)  # the message is about the cases that came nearest
    nearest = [error for passed, error in refused if passed == most]
    name = nearest[0].name
    raise Unsupported(name, fields[name], [value for error in nearest if error.name == name for value in error.supported])


class Problem(NamedTuple):
    """A part of a spec that does not fit: its path, its value, and the values that would fit."""

    where: str
    value: Any
    choices: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.where} is {self.value!r} instead of {' or '.join(map(repr, dict.fromkeys(self.choices)))}"


@dataclass
class MatchResult:
    """The result of `match`.

    Attributes:
        fields: the fields of `config.json`.
        problems: the parts of the spec that do not fit; an empty list if it fits.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def join(self, other: MatchResult, where: str) -> None:
        """Add the result for a part of the spec. It is a problem if two parts need different values of one field."""
        self.problems += other.problems
        for name, value in other.fields.items():
            if self.fields.setdefault(name, value) != value:
                self.problems.append(Problem(f"{name} by {where}", value, (self.fields[name],)))


def match(pattern: Any, value: Any, where: str) -> MatchResult:
    """The fields of `config.json` for which `pattern` gives the spec `value`.

    Args:
        pattern: the pattern of an architecture, or a part of it.
        value: the spec, or a part of it, as JSON data with every option filled in.
        where: the path to that part, for messages.
    """
    match pattern:
        case Field(name, None):
            return MatchResult({name: value})
        case Field(name, values) if values is not None:
            theirs = [key for key, ours in values.items() if ours == value]
            return MatchResult({name: theirs[0]}) if theirs else _unfit(where, value, values.values())
        case Free():
            return MatchResult()
        case OneOf():
            cases = [case for case in pattern.cases if _name(case.pattern) == _name(value)]
            if not cases:
                return _unfit(where, _name(value), [_name(case.pattern) for case in pattern.cases])
            return _nearest([_case(case, value, where) for case in cases])
        case Mapping() if "name" in pattern:
            if value["name"] != pattern["name"]:
                return _unfit(where, value["name"], [pattern["name"]])
            result = MatchResult()
            # options that the pattern leaves out must have their defaults
            options = {**resolve(KINDS[where], pattern["name"]).options, **pattern}
            for name, part in value.items():
                result.join(match(options[name], part, f"{where}.{name}"), f"{where}.{name}")
            return result
    return MatchResult() if pattern == value else _unfit(where, value, [pattern])


def _case(case: Case, value: Any, where: str) -> MatchResult:
    result = match(case.pattern, value, where)
    result.join(MatchResult(dict(case.where)), where)
    return result


def _nearest(results: Sequence[MatchResult]) -> MatchResult:
    """The result with the fewest problems; results that fail at the same places add the values that would fit there."""
    best = min(results, key=lambda result: len(result.problems))
    places = [problem.where for problem in best.problems]
    alike = [result.problems for result in results if [problem.where for problem in result.problems] == places]
    merged = []
    for problems in zip(*alike, strict=True):
        choices = tuple(choice for problem in problems for choice in problem.choices)
        merged.append(problems[0]._replace(choices=choices))
    best.problems = merged
    return best


def _name(value: Any) -> Any:
    """The component that a spec or its pattern names; None if it is not the spec of a component."""
    return value["name"] if isinstance(value, Mapping) else None


def _unfit(where: str, value: Any, expected: Iterable[Any]) -> MatchResult:
    return MatchResult(problems=[Problem(where, value, tuple(expected))])
