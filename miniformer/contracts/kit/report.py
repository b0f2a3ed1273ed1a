"""What came of checking: one result a property, and the report of a component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Outcome(str, Enum):
    """What came of a property."""

    HELD = "held"
    SKIPPED = "skipped"
    EXPECTED = "fails as declared"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """What came of one property of one component.

    Attributes:
        kind, component, property: what was checked.
        outcome: what came of it.
        promise: the property in a sentence.
        examples: how many examples were checked.
        seconds: how long that took.
        why: the reason of a skip or a declaration, or what was seen instead of what is promised.
        example: the smallest example found for which it fails: sizes, options and layout.
        consequence: what that means in training.
    """

    kind: str
    component: str
    property: str
    outcome: Outcome
    promise: str
    examples: int = 0
    seconds: float = 0.0
    why: str = ""
    example: str = ""
    consequence: str = ""


@dataclass(frozen=True)
class Report:
    """The results of one component, in the order of the properties."""

    kind: str
    component: str
    results: Sequence[Result]

    @property
    def ok(self) -> bool:
        """No property failed."""
        return not self.failed

    @property
    def failed(self) -> list[Result]:
        """What failed."""
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    def __getitem__(self, name: str) -> Result:
        """The result of a property."""
        return next(result for result in self.results if result.property == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {"kind": self.kind, "component": self.component, "ok": self.ok,
                "results": [{**asdict(result), "outcome": result.outcome.value} for result in self.results]}

    def explain(self) -> str:
        """What failed, in sentences; "" if nothing did."""
        return "\n".join(sentences(result) for result in self.failed)


def sentences(result: Result) -> str:
    """A failure for people: the promise, what was seen, for which example, and what it means."""
    lines = [f"{result.kind} {result.component} breaks {result.property}: {result.promise}", f"  seen: {result.why}"]
    if result.example:
        lines.append(f"  for: {result.example}")
    if result.consequence:
        lines.append(f"  in training: {result.consequence}")
    return "\n".join(lines)
