"""The pytest suite: every property of a component, or of many, is a test of its own.

This is a plugin's whole test file:

    from miniformer.contracts import contract_suite

    test_contracts = contract_suite(distribution="acme-attention")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from miniformer.kernel.errors import SpecError
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.registry import Availability, Entry, current_registry

from .catalogue import chosen
from .check import FAST, THOROUGH, Suite
from .component_under_test import ComponentUnderTest
from .report import Outcome, sentences


def contract_suite(kind: str | None = None, target: Any = None, *, distribution: str | None = None, thorough: bool = False,
                   examples: int | None = None, seed: int = 0, data: str | None = None, only: Sequence[str] = (),
                   shrinks: bool = True) -> Callable[..., None]:
    """A test function that pytest runs once for each property of each component.

    Args:
        kind, target: one component, as for `check_component`; without `target`, all components of the kind.
        distribution: only components that this installed distribution registers.
        thorough, examples, seed, data, only, shrinks: as for `check_component`.

    Raises:
        SpecError: no component fits these arguments, or none has a property that is named in `only`.
    """
    import pytest

    parameters = []
    subjects = [ComponentUnderTest.of(kind_, target_, data) for kind_, target_ in _targets(kind, target, distribution)]
    only = chosen(only, [under_test.kind for under_test in subjects])
    for under_test in subjects:
        suite = Suite(under_test, examples or (THOROUGH if thorough else FAST), thorough, seed, shrinks, only)
        parameters += [pytest.param(suite, name, id=f"{under_test.kind}-{under_test.name}-{name}") for name in suite.names]

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


def _targets(kind: str | None, target: Any, distribution: str | None) -> Sequence[tuple[str | None, Any]]:
    if target is not None:
        return [(kind, target)]
    targets = [(entry.kind, entry.qualified) for entry in usable(kind) if distribution in (None, entry.distribution)]
    if not targets:
        raise SpecError(f"{distribution or 'nobody'} registers no {kind or 'component'} that can be loaded; "
                        "is the package installed?")
    return targets


def usable(kind: str | None = None) -> list[Entry]:
    """The entries of the registry in force that can be loaded, of one kind or of all."""
    registry = current_registry()
    registry.load_all()
    return [entry for entry in registry.entries(kind)
            if entry.kind in KINDS and entry.state in (Availability.AVAILABLE, Availability.AMBIGUOUS)]
