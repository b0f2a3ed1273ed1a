"""Checks each property of a component on drawn examples; if one fails, hypothesis looks for a smaller one that fails too."""

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
"""How many examples each property is checked on, usually and in a thorough check."""
ABILITIES = "declared-abilities-are-checked"
"""The name of the last result, which says whether every declared ability was checked by some property."""


@dataclass
class Suite:
    """The properties of one component. Each is checked when its result is first needed, and once only.

    Attributes:
        under_test: the component.
        examples: how many examples a property is checked on.
        thorough: whether slow properties are checked too.
        seed: the seed of the draws.
        shrinks: whether the smallest example of a failure is looked for. That takes most of the time of a property that fails,
            and is of no use to those who only ask whether it does.
    """

    under_test: ComponentUnderTest
    examples: int = FAST
    thorough: bool = False
    seed: int = 0
    shrinks: bool = True
    _results: dict[str, Result] = field(default_factory=dict)

    def properties(self) -> list[Property]:
        """The properties of the component's kind."""
        return properties_of(self.under_test.kind)

    @property
    def names(self) -> list[str]:
        """The names of all results, in order."""
        return [*(prop.name for prop in self.properties()), ABILITIES]

    def result(self, name: str) -> Result:
        """The result of a property by its name."""
        if name not in self._results:
            if name == ABILITIES:
                self._results[name] = self._check_abilities()
            else:
                self._results[name] = self._check(next(prop for prop in self.properties() if prop.name == name))
        return self._results[name]

    def results(self) -> Iterator[Result]:
        """The results of all properties, each as soon as it is known."""
        for name in self.names:
            yield self.result(name)

    def _check(self, prop: Property) -> Result:
        started = time.perf_counter()
        ran, outcome, why, story = _run(prop, self.under_test, self)
        declared = self.under_test.known_violations.get(prop.name)
        if declared is not None and outcome is Outcome.FAILED:
            outcome, why = Outcome.EXPECTED, f"{declared} (seen: {why})"
        elif declared is not None and outcome is Outcome.HELD:
            outcome, why = Outcome.FAILED, f"it declares that it breaks this promise ({declared}), and it keeps it"
        elif prop.note and outcome is Outcome.FAILED:
            outcome = Outcome.NOTE
        return Result(self.under_test.kind, self.under_test.name, prop.name, outcome, prop.promise, ran,
                      time.perf_counter() - started, why, story if outcome in (Outcome.FAILED, Outcome.EXPECTED) else "",
                      prop.consequence if outcome is Outcome.FAILED else "")

    def _check_abilities(self) -> Result:
        """Whether each declared ability is proved by a property that ran."""
        promise = "Everything that the class declares was checked."
        if self.under_test.fixed:
            return Result(self.under_test.kind, self.under_test.name, ABILITIES, Outcome.SKIPPED, promise,
                          why="options are fixed, and with them the component may lack abilities that its class declares")
        unproved = []
        for ability in sorted(self.under_test.abilities):
            proofs = [prop.name for prop in self.properties() if ability in prop.proves]
            if not any(self.result(name).outcome is not Outcome.SKIPPED for name in proofs):
                unproved.append(ability)
        unknown = sorted(self.under_test.known_violations.keys() - {prop.name for prop in self.properties()})
        why = "; ".join([*(f"`{ability}` is declared, and nothing that was checked proves it" for ability in unproved),
                         *(f"`known_violations` names {name!r}, which is no property" for name in unknown)])
        return Result(self.under_test.kind, self.under_test.name, ABILITIES, Outcome.FAILED if why else Outcome.HELD,
                      promise, len(self.under_test.abilities), 0.0, why, "",
                      "the framework relies on an ability that was never shown" if why else "")


def check_component(kind: str, target: Any, *, thorough: bool = False, examples: int | None = None, seed: int = 0,
                    data: str | None = None) -> Report:
    """Check every promise of a component's kind.

    Args:
        kind: `attention`, `ffn`, `task`, ...
        target: a registered name, a spec with options (those are then not drawn), or a class.
        thorough: use more examples, and check slow properties too.
        examples: how many examples a property is checked on.
        seed: the seed of the draws; the same seed gives the same report.
        data: a JSONL file of records, for a task without embedded data.

    Raises:
        UserError: no component has this name, or the class cannot be a component of this kind.
    """
    under_test = ComponentUnderTest.of(kind, target, data)
    suite = Suite(under_test, examples or (THOROUGH if thorough else FAST), thorough, seed)
    return Report(kind, under_test.name, list(suite.results()))


def _run(prop: Property, under_test: ComponentUnderTest, suite: Suite) -> tuple[int, Outcome, str, str]:
    """The number of examples that ran, the outcome, its reason, and the description of the smallest example that failed."""
    if reason := prop.skip(under_test):
        return 0, Outcome.SKIPPED, reason, ""
    if prop.thorough and not suite.thorough:
        return 0, Outcome.SKIPPED, "only when asked to be thorough", ""
    ran, last_case = 0, list[Case]()

    @seeded_with(suite.seed)
    @settings(max_examples=max(1, round(prop.examples * suite.examples)), deadline=None, database=None, print_blob=False,
              verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
              phases=[Phase.generate, Phase.shrink] if suite.shrinks else [Phase.generate])
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        nonlocal ran
        last_case[:] = [Case(under_test, data)]
        try:
            prop.check(last_case[0])
        except RunError:  # the component says that it cannot do this on this machine
            reject()
        ran += 1

    def story() -> str:  # hypothesis runs the smallest failing example last
        return last_case[0].describe() if last_case else ""

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _one_thread(), _quiet():
            warnings.simplefilter("ignore", HypothesisWarning)
            examples()
    except Skip as reason:
        return ran, Outcome.SKIPPED, str(reason), ""
    except Unsatisfiable:
        return 0, Outcome.SKIPPED, "the component refused every drawn combination of options and sizes", ""
    except Flaky:
        why = "its behaviour depends on more than its inputs: an example failed once and then did not"
        return ran, Outcome.FAILED, why, story()
    except Broken as error:
        return ran, Outcome.FAILED, str(error), story()
    except Exception as error:  # a component may fail in any way
        return ran, Outcome.FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", story()
    return ran, Outcome.HELD, "", ""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread of torch: with tensors as small as these a second one only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log lines of the framework, such as which kernel was chosen; thousands of models are built here."""
    logger = logging.getLogger("miniformer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
