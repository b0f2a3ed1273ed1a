"""Results of checking: one for each property, and the report of a component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Outcome(str, Enum):
    """The outcome of checking a property; docs/contracts.md says what each means."""

    HELD = "held"
    SKIPPED = "skipped"
    EXPECTED = "fails as declared"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """The result of one property of one component.

    Attributes:
        kind, component, property: the names of what was checked.
        outcome: how the check ended.
        promise: the property in words.
        examples: how many examples were checked.
        seconds: how long the check took.
        why: the reason for a skip, the declared reason for a violation, or the fault that was seen.
        example: the smallest example that fails: its sizes, options and layout.
        consequence: the damage that the fault does in training.
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
        """Whether no property failed."""
        return not self.failed

    @property
    def failed(self) -> list[Result]:
        """The results that failed."""
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    def __getitem__(self, name: str) -> Result:
        """The result of a property by its name."""
        return next(result for result in self.results if result.property == name)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {"kind": self.kind, "component": self.component, "ok": self.ok,
                "results": [{**asdict(result), "outcome": result.outcome.value} for result in self.results]}

    def explain(self) -> str:
        """All failures in sentences; "" if nothing failed."""
        return "\n".join(sentences(result) for result in self.failed)


def sentences(result: Result) -> str:
    """A failure in sentences: the promise, the fault that was seen, the example, and the damage in training."""
    lines = [f"{result.kind} {result.component} breaks {result.property}: {result.promise}", f"  seen: {result.why}"]
    if result.example:
        lines.append(f"  for: {result.example}")
    if result.consequence:
        lines.append(f"  in training: {result.consequence}")
    return "\n".join(lines)
