"""Checks each property of a component on drawn examples; if one fails, hypothesis looks for a smaller one that fails too."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import seed as seeded_with
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisWarning, Unsatisfiable

from miniformer.kernel.errors import RunError

from .case import Case, seeded
from .catalogue import chosen
from .component_under_test import ComponentUnderTest
from .fault_place import message_of, place_of
from .library_internals import no_constants_of_modules
from .properties import ABILITIES, ABILITIES_PROMISE, Broken, Property, Skip, properties_of
from .report import Outcome, Report, Result

FAST, THOROUGH = 30, 400
"""How many examples each property is checked on, usually and in a thorough check."""
IMPORTS_COUNT = ("the examples depend on the seed and on which modules are imported: the installed hypothesis draws constants "
                 "of imported modules, and has no known way to turn that off")
"""A note of reports, where it is so."""


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
        only: the names of the properties that `results` gives; empty: all.
    """

    under_test: ComponentUnderTest
    examples: int = FAST
    thorough: bool = False
    seed: int = 0
    shrinks: bool = True
    only: Sequence[str] = ()
    _results: dict[str, Result] = field(default_factory=dict)

    def properties(self) -> list[Property]:
        """The properties of the component's kind."""
        return properties_of(self.under_test.kind)

    @property
    def names(self) -> list[str]:
        """The names of all results, in order; or of those in `only`."""
        names = [*(prop.name for prop in self.properties()), ABILITIES]
        return [name for name in names if not self.only or name in self.only]

    def result(self, name: str) -> Result:
        """The result of a property by its name."""
        if name not in self._results:
            if name == ABILITIES:
                self._results[name] = self._check_abilities()
            else:
                self._results[name] = self._check(next(prop for prop in self.properties() if prop.name == name))
        return self._results[name]

    def results(self) -> Iterator[Result]:
        """The results of all properties, or of those in `only`, each as soon as it is known."""
        for name in self.names:
            yield self.result(name)

    def report(self) -> Report:
        """The report of all results."""
        return report_of(self.under_test, list(self.results()))

    def _check(self, prop: Property) -> Result:
        started = time.perf_counter()
        run = _run(prop, self.under_test, self)
        outcome, why = run.outcome, run.why
        declared = self.under_test.known_violations.get(prop.name)
        if declared is not None and outcome is Outcome.FAILED:
            outcome, why = Outcome.EXPECTED, f"{declared} (seen: {why})"
        elif declared is not None and outcome is Outcome.HELD:
            outcome, why = Outcome.FAILED, f"it declares that it breaks this promise ({declared}), and it keeps it"
        elif prop.note and outcome is Outcome.FAILED:
            outcome = Outcome.NOTE
        return Result(self.under_test.kind, self.under_test.name, prop.name, outcome, prop.promise, run.examples,
                      time.perf_counter() - started, why, run.story if outcome in (Outcome.FAILED, Outcome.EXPECTED) else "",
                      prop.consequence if outcome is Outcome.FAILED else "", tuple(sorted(run.unseen)), run.place)

    def _check_abilities(self) -> Result:
        """Whether each declared ability is proved by a property that ran."""
        promise = ABILITIES_PROMISE
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


def check_component(kind: str | None = None, target: Any = None, *, thorough: bool = False, examples: int | None = None,
                    seed: int = 0, data: str | None = None, only: Sequence[str] = (), shrinks: bool = True) -> Report:
    """Check every promise of a component's kind.

    Args:
        kind: `attention`, `ffn`, `task`, ...; of a class, None means the kind whose interface it implements.
        target: a registered name, a spec with options (those are then not drawn), a class, or a class as `module:Class`.
        thorough: use more examples, and check slow properties too.
        examples: how many examples a property is checked on.
        seed: the seed of the draws; the same seed gives the same report, but for its seconds.
        data: a JSONL file of records, for a task without embedded data.
        only: the names of the properties to check; empty: all.
        shrinks: whether the smallest example of a failure is looked for, which takes most of the time of one.

    Raises:
        UserError: no component or property has this name, or the class cannot be a component of this kind.
    """
    under_test = ComponentUnderTest.of(kind, target, data)
    only = chosen(only, [under_test.kind])
    return Suite(under_test, examples or (THOROUGH if thorough else FAST), thorough, seed, shrinks, only).report()


def report_of(under_test: ComponentUnderTest, results: Sequence[Result]) -> Report:
    """The report of a component with these results, and with notes on how they were found."""
    with no_constants_of_modules() as steady:
        notes = () if steady else (IMPORTS_COUNT,)
    return Report(under_test.kind, under_test.name, results, notes)


@dataclass
class _Run:
    """The examples of one property: how many ran, how that ended and why, and what was told on the way.

    Attributes:
        examples: how many ran.
        outcome: how it ended.
        why: the reason.
        story: the description of the smallest example that failed.
        place: the line of the component that raised.
        unseen: what the examples could not look at.
    """

    examples: int
    outcome: Outcome
    why: str = ""
    story: str = ""
    place: str = ""
    unseen: frozenset[str] = frozenset()


def _run(prop: Property, under_test: ComponentUnderTest, suite: Suite) -> _Run:
    """Check one property on drawn examples."""
    if reason := prop.skip(under_test):
        return _Run(0, Outcome.SKIPPED, reason)
    if prop.thorough and not suite.thorough:
        return _Run(0, Outcome.SKIPPED, "only when asked to be thorough")
    ran, last_case, unseen = 0, list[Case](), set[str]()

    @seeded_with(suite.seed)
    @settings(max_examples=max(1, round(prop.examples * suite.examples)), deadline=None, database=None, print_blob=False,
              verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
              backend="hypothesis", phases=[Phase.generate, Phase.shrink] if suite.shrinks else [Phase.generate])
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        nonlocal ran
        last_case[:] = [Case(under_test, data)]
        try:
            with seeded(0):  # what draws outside any block of its own draws the same in every process
                prop.check(last_case[0])
        except RunError:  # the component says that it cannot do this on this machine
            reject()
        ran += 1
        unseen.update(getattr(last_case[0], "unseen", ()))

    def story() -> str:  # hypothesis runs the smallest failing example last
        return last_case[0].describe() if last_case else ""

    try:
        with _undisturbed_draws():
            examples()
    except Skip as reason:
        return _Run(ran, Outcome.SKIPPED, str(reason))
    except Unsatisfiable:
        return _Run(0, Outcome.SKIPPED, "the component refused every drawn combination of options and sizes")
    except Flaky:
        why = "its behaviour depends on more than its inputs: an example failed once and then did not"
        return _Run(ran, Outcome.FAILED, why, story())
    except Broken as error:
        return _failed(ran, message_of(error, whole=True), error, story())
    except Exception as error:  # a component may fail in any way
        return _failed(ran, f"{type(error).__name__}: {message_of(error)}".removesuffix(": "), error, story())
    return _Run(ran, Outcome.HELD, unseen=frozenset(unseen))


def _failed(ran: int, why: str, error: Exception, story: str) -> _Run:
    """A failure with the line of the component that an exception came from, if one did."""
    place = place_of(error)
    return _Run(ran, Outcome.FAILED, f"{why} at {place}" if place else why, story, place)


@contextmanager
def _undisturbed_draws() -> Iterator[None]:
    """Let nothing count in the block but the seed, as far as the process can be kept out; afterwards it is as before."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", HypothesisWarning)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for context in (_one_thread(), _quiet(), no_constants_of_modules()):
            stack.enter_context(context)
        yield


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
