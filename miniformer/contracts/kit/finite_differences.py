"""Compares gradients with finite differences, along one direction each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

STEPS = ((1e-5, 1e-3), (1e-2, 3e-2))
"""Steps of finite differences, each with the error that it allows, as a part of the largest number compared: a short step for
functions with corners, and a long one for those that compute in float32, whose rounding error of 1e-7 it is divided by."""


def gradient_errors(exact: Tensor, numeric: Callable[[float], Tensor]) -> Tensor | None:
    """How far gradients are from finite differences, as parts of the largest; None if they agree for one of the `STEPS`.

    Args:
        exact: the gradients, each along its own direction.
        numeric: the finite differences for a step, with the shape of `exact`.
    """
    errors = None
    for step, allowed in STEPS:
        expected = numeric(step)
        errors = (exact - expected).abs() / expected.abs().max().clamp(min=1e-6)
        if bool((errors <= allowed).all()):
            return None
    return errors
