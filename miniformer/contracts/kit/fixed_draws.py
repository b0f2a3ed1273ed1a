"""Random numbers that are the same in every pass, so that passes in training mode can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .case import seeded

CONSTANTS = {"bernoulli": 1.0, "rand": 0.5, "uniform": 0.5, "randn": 0.0, "normal": 0.0, "exponential": 1.0}
"""What takes the place of random numbers, by the operator that draws them. Dropout draws from `bernoulli`, and keeps all."""


class _Constants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces what operators draw by a constant."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func.__name__.partition(".")[0].removesuffix("_like").removesuffix("_")
        return out.fill_(CONSTANTS[operator]) if operator in CONSTANTS else out


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Have a module draw the same random numbers in each pass inside a block of its own.

    One seed would do if a module drew by the shape of its input alone. But experts draw for the tokens that they are sent, so
    that with another token in one place, other numbers come to all places behind it.
    """
    with seeded(0), _Constants():  # type: ignore[no-untyped-call]
        yield
