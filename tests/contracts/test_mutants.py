"""The kit is tested on liars: each faulty component is caught by the property that names its fault, and no healthy one is."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from depth import is_thorough, rarely

from miniformer.contracts.kit.check import Suite
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.report import Outcome

from . import mutants

CLASSES = [cls for module in pkgutil.iter_modules(mutants.__path__)
           for _, cls in inspect.getmembers(importlib.import_module(f"{mutants.__name__}.{module.name}"), inspect.isclass)
           if cls.__module__ == f"{mutants.__name__}.{module.name}" and hasattr(cls, "kind")]
MUTANTS = [cls for cls in CLASSES if "caught_by" in vars(cls)]
HEALTHY = [cls for cls in CLASSES if not hasattr(cls, "caught_by")]
CAUGHT = []
EXAMPLES = 5 if is_thorough() else 3


@pytest.fixture(autouse=True)
def _precision():
    yield
    torch.set_float32_matmul_precision("highest")  # which one of them changes


def name(cls):
    return f"{cls.kind}-{cls.__name__}"


@pytest.mark.parametrize("cls", MUTANTS, ids=name)
def test_mutants_are_caught_by_the_property_that_names_their_fault(cls):
    result = Suite(ComponentUnderTest.of(cls.kind, cls), shrinks=is_thorough()).result(cls.caught_by)
    assert result.outcome is Outcome.FAILED, f"{cls.__name__}: {result}"
    assert result.why
    assert result.consequence
    CAUGHT.append(cls)


def test_how_many_mutants_are_caught_is_printed(capsys):
    with capsys.disabled():
        print(f"\n{len(CAUGHT)} of {len(MUTANTS)} mutants caught, each by the property that names its fault")
    assert len(MUTANTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(3), *map(rarely, range(3, 20))])
def test_mutants_parents_raise_no_false_alarm(seed):
    for cls in HEALTHY if is_thorough() else HEALTHY[seed::3]:  # each under one of three seeds
        failed = [result for result in Suite(ComponentUnderTest.of(cls.kind, cls), examples=EXAMPLES, seed=seed).results()
                  if result.outcome is Outcome.FAILED]
        assert failed == [], f"{cls.__name__} with seed {seed}"
