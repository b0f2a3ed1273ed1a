"""Checking: each property on drawn examples, shrunk by hypothesis where one fails, and honest about what did not run."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import seed as seeded_with
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisWarning, Unsatisfiable

from miniformer.kernel.errors import RunError

from .case import Case
from .component_under_test import ComponentUnderTest
from .properties import Broken, Property, Skip, properties_of
from .report import Outcome, Report, Result

FAST, THOROUGH = 30, 400
"""Examples a property."""
ABILITIES = "declared-abilities-are-checked"


@dataclass
class Suite:
    """The properties of one component, each checked when it is asked for and once.

    Attributes:
        subject: the component.
        examples: how many examples a property is checked on.
        thorough: check too what takes long.
        seed: of the draws.
        shrinks: look for the smallest example of what fails. It takes most of the time of a property that fails, and is of
            no use to those who only ask whether it does.
    """

    subject: ComponentUnderTest
    examples: int = FAST
    thorough: bool = False
    seed: int = 0
    shrinks: bool = True
    _results: dict[str, Result] = field(default_factory=dict)

    def properties(self) -> list[Property]:
        """What is promised by the component's kind."""
        return properties_of(self.subject.kind)

    @property
    def names(self) -> list[str]:
        """The names of all results that there will be."""
        return [*(p.name for p in self.properties()), ABILITIES]

    def result(self, name: str) -> Result:
        """What comes of a property."""
        if name not in self._results:
            found = self._abilities() if name == ABILITIES else self._checked(
                next(p for p in self.properties() if p.name == name))
            self._results[name] = found
        return self._results[name]

    def results(self) -> Iterator[Result]:
        """What comes of each property, one by one."""
        for name in self.names:
            yield self.result(name)

    def _checked(self, prop: Property) -> Result:
        started = time.perf_counter()
        ran, outcome, why, story = _run(prop, self.subject, self)
        declared = self.subject.known_violations.get(prop.name)
        if declared is not None and outcome is Outcome.FAILED:
            outcome, why = Outcome.EXPECTED, f"{declared} (seen: {why})"
        elif declared is not None and outcome is Outcome.HELD:
            outcome, why = Outcome.FAILED, f"it declares that it breaks this ({declared}), and it does not"
        elif prop.note and outcome is Outcome.FAILED:
            outcome = Outcome.NOTE
        return Result(self.subject.kind, self.subject.name, prop.name, outcome, prop.promise, ran,
                      time.perf_counter() - started, why, story if outcome in (Outcome.FAILED, Outcome.EXPECTED) else "",
                      prop.consequence if outcome is Outcome.FAILED else "")

    def _abilities(self) -> Result:
        """Each declared ability has a property that proves it and that ran."""
        promise = "Everything that the class declares was put to the test."
        if self.subject.fixed:
            return Result(self.subject.kind, self.subject.name, ABILITIES, Outcome.SKIPPED, promise,
                          why="options are given, and with them it need not be able to do all that it declares")
        unproved = []
        for ability in sorted(self.subject.abilities):
            proofs = [p.name for p in self.properties() if ability in p.proves]
            if not any(self.result(name).outcome is not Outcome.SKIPPED for name in proofs):
                unproved.append(ability)
        unknown = sorted(self.subject.known_violations.keys() - {p.name for p in self.properties()})
        why = "; ".join([*(f"`{ability}` is declared, and nothing that was checked proves it" for ability in unproved),
                         *(f"`known_violations` names {name!r}, which is no property" for name in unknown)])
        return Result(self.subject.kind, self.subject.name, ABILITIES, Outcome.FAILED if why else Outcome.HELD,
                      promise, len(self.subject.abilities), 0.0, why, "",
                      "the framework relies on what was never shown" if why else "")


def check_component(kind: str, target: Any, *, thorough: bool = False, examples: int | None = None, seed: int = 0,
                    data: str | None = None) -> Report:
    """Check every promise of a component's kind.

    Args:
        kind: `attention`, `ffn`, `task`, ...
        target: a registered name, a spec with options (those are then not drawn), or a class.
        thorough: more examples, and what takes long.
        examples: how many examples a property is checked on.
        seed: of the draws; the same seed gives the same report.
        data: a JSONL file of records, for a task without embedded data.

    Raises:
        UserError: there is no such component, or it cannot be one of this kind.
    """
    subject = ComponentUnderTest.of(kind, target, data)
    suite = Suite(subject, examples or (THOROUGH if thorough else FAST), thorough, seed)
    return Report(kind, subject.name, list(suite.results()))


def _run(prop: Property, subject: ComponentUnderTest, suite: Suite) -> tuple[int, Outcome, str, str]:
    """How many examples ran, what came of them, why, and the story of the smallest that failed."""
    if reason := prop.skip(subject):
        return 0, Outcome.SKIPPED, reason, ""
    if prop.thorough and not suite.thorough:
        return 0, Outcome.SKIPPED, "only when asked to be thorough", ""
    ran, tried = 0, list[Case]()

    @seeded_with(suite.seed)
    @settings(max_examples=max(1, round(prop.examples * suite.examples)), deadline=None, database=None, print_blob=False,
              verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
              phases=[Phase.generate, Phase.shrink] if suite.shrinks else [Phase.generate])
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        nonlocal ran
        tried[:] = [Case(subject, data)]
        try:
            prop.check(tried[0])
        except RunError:  # it says on purpose that it cannot do this here
            reject()
        ran += 1

    def story() -> str:
        return tried[0].tell() if tried else ""

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _one_thread(), _quiet():
            warnings.simplefilter("ignore", HypothesisWarning)
            examples()
    except Skip as reason:
        return ran, Outcome.SKIPPED, str(reason), ""
    except Unsatisfiable:
        return 0, Outcome.SKIPPED, "no options that were tried go together with the sizes", ""
    except Flaky:
        return ran, Outcome.FAILED, "what it does hangs on more than its inputs: it failed once and then did not", story()
    except Broken as error:
        return ran, Outcome.FAILED, str(error), story()
    except Exception as error:  # a component may fail in any way
        return ran, Outcome.FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", story()
    return ran, Outcome.HELD, "", ""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors are so small here that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of the framework, such as which kernel was taken, from thousands of models."""
    logger = logging.getLogger("miniformer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
