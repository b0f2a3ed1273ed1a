"""The pytest door: every property of some components as a test of its own.

A plugin's whole test file:

    from miniformer.contracts import contract_suite

    test_contracts = contract_suite(distribution="acme-attention")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from miniformer.kernel.errors import SpecError
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.registry import Availability, Entry, current_registry

from .check import FAST, THOROUGH, Suite
from .component_under_test import ComponentUnderTest
from .report import Outcome, sentences


def contract_suite(kind: str | None = None, target: Any = None, *, distribution: str | None = None, thorough: bool = False,
                   examples: int | None = None, seed: int = 0, data: str | None = None) -> Callable[..., None]:
    """A test function that pytest runs once for each property of each component.

    Args:
        kind, target: one component, as for `check_component`; without `target` all of the kind.
        distribution: everything that this installed distribution registers, or what it registers of `kind`.
        thorough, examples, seed, data: as for `check_component`.

    Raises:
        SpecError: that is nothing.
    """
    import pytest

    suites = [Suite(ComponentUnderTest.of(kind_, target_, data), examples or (THOROUGH if thorough else FAST), thorough, seed)
              for kind_, target_ in _targets(kind, target, distribution)]
    parameters = [pytest.param(suite, name, id=f"{suite.subject.kind}-{suite.subject.name}-{name}")
                  for suite in suites for name in suite.names]

    @pytest.mark.parametrize(("suite", "name"), parameters)
    def test_contracts(suite: Suite, name: str) -> None:
        result = suite.result(name)
        if result.outcome is Outcome.FAILED:
            pytest.fail(sentences(result), pytrace=False)
        elif result.outcome is Outcome.EXPECTED:
            pytest.xfail(result.why)
        elif result.outcome in (Outcome.SKIPPED, Outcome.NOTE):
            pytest.skip(result.why)

    return test_contracts


def _targets(kind: str | None, target: Any, distribution: str | None) -> list[tuple[str, Any]]:
    if target is not None:
        if kind is None:
            raise SpecError("a component to check has a kind; give it")
        return [(kind, target)]
    found = [(entry.kind, entry.qualified) for entry in usable(kind) if distribution in (None, entry.distribution)]
    if not found:
        raise SpecError(f"{distribution or 'nobody'} registers no {kind or 'component'} that can be loaded; "
                        "is the package installed?")
    return found


@cache
def usable(kind: str | None = None) -> list[Entry]:
    """The entries of a kind, or of all, that can be loaded."""
    registry = current_registry()
    registry.load_all()
    return [entry for entry in registry.entries(kind)
            if entry.kind in KINDS and entry.state in (Availability.AVAILABLE, Availability.AMBIGUOUS)]
