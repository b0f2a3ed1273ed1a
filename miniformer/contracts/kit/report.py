"""Results of checking: one for each property, and the report of a component."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from .root_cause import rank


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
        unseen: what the examples of a promise that held did not look at, each with its reason.
        place: the line of the component's code that raised an exception, which broke the promise; "" if none did.
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
    unseen: tuple[str, ...] = ()
    place: str = ""

    def not_looked_at(self) -> str:
        """What was not looked at, in words; "" if that is nothing."""
        return f"not looked at: {'; '.join(self.unseen)}" if self.unseen else ""


@dataclass(frozen=True)
class Report:
    """The results of one component, in the order of the properties.

    Attributes:
        kind, component: the names of what was checked.
        results: one for each property.
        notes: on how they were found.
    """

    kind: str
    component: str
    results: Sequence[Result]
    notes: Sequence[str] = ()

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

    @property
    def probably_first(self) -> Result | None:
        """The failure that probably explains the others; None if fewer than two promises are broken."""
        if len(self.failed) < 2:
            return None
        place, count = _commonest_place(self.failed)
        group = [result for result in self.failed if result.place == place] if 2 * count > len(self.failed) else self.failed
        return min(group, key=lambda result: rank(result.property))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        first = self.probably_first
        return {"kind": self.kind, "component": self.component, "ok": self.ok, "notes": list(self.notes),
                "probably_first": None if first is None else first.property,
                "results": [{**asdict(result), "unseen": list(result.unseen), "outcome": result.outcome.value}
                            for result in self.results]}

    def explain(self) -> str:
        """All failures in sentences, after a line on which is probably the first; "" if nothing failed."""
        first = self.probably_first
        of_all = [] if first is None else [_which_is_first(first, self.failed)]
        return "\n".join([*of_all, *(sentences(result) for result in self.failed)])


def _commonest_place(failed: Sequence[Result]) -> tuple[str, int]:
    """The line at which most failures end that an exception of the component caused, and their number."""
    places = Counter(result.place for result in failed if result.place)
    return places.most_common(1)[0] if places else ("", 0)


def _which_is_first(first: Result, failed: Sequence[Result]) -> str:
    """A line on several failures: which is probably the cause of the others, and how many end at one line of code."""
    place, count = _commonest_place(failed)
    text = f"{len(failed)} promises are broken, perhaps by one fault"
    if count > 1:
        text += f"; {count} of them end at {place}"
    return f"{text}; the first is probably {first.property}"


def sentences(result: Result) -> str:
    """A failure in sentences: the promise, the fault that was seen, the example, and the damage in training."""
    lines = [f"{result.kind} {result.component} breaks {result.property}: {result.promise}", f"  seen: {result.why}"]
    if result.example:
        lines.append(f"  for: {result.example}")
    if result.consequence:
        lines.append(f"  in training: {result.consequence}")
    return "\n".join(lines)
