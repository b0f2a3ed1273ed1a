"""How deep tests go: what CI needs, or with `pytest --thorough` everything.

Import it where tests are collected, which is after the command line was read.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

QUICK, THOROUGH = "quick", "thorough"
settings.register_profile(QUICK, derandomize=True, deadline=None, max_examples=10, database=None)
settings.register_profile(THOROUGH, settings.get_profile(QUICK), max_examples=30)

thorough = pytest.mark.thorough
"""Marks tests, or items of one, that only the thorough run needs."""


def is_thorough() -> bool:
    return settings.get_current_profile_name() == THOROUGH


def examples(count: int) -> int:
    """Examples of a property that is checked on `count` in the thorough run, and on a third of them in CI."""
    return count if is_thorough() else max(3, count // 3)


def every(step: int, values: Iterable[Any], first: int = 0) -> list[Any]:
    """Parameters of which CI takes one in `step`, beginning with the one at `first`, and the thorough run all."""
    return [value if n % step == first else rarely(value) for n, value in enumerate(values)]


def rarely(value: Any) -> Any:
    """A parameter of a test, or a tuple of several, for the thorough run only."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=thorough)
