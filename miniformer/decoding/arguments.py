"""Checks of the arguments with which text is written, which come from users: counts, seeds, strings."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from miniformer.kernel.errors import UserError


def checked_count(name: str, value: Any) -> int:
    """The argument `name`, which says how many, as an int.

    Raises:
        UserError: it is not a whole number, or it is negative.
    """
    if (number := _whole(value)) is None or number < 0:
        raise UserError(f"{name}: expected a whole number, not negative; found {value!r:.80}")
    return number


def checked_seed(seed: Any) -> int | None:
    """A seed as torch takes it.

    Raises:
        UserError: it is not a whole number of 64 bits.
    """
    if seed is None:
        return None
    if (number := _whole(seed)) is None or not -2**63 <= number < 2**63:
        raise UserError(f"seed: expected a whole number of 64 bits, from -2**63 to 2**63 - 1; found {seed!r:.80}")
    return number


def checked_strings(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """The argument `name`, one string or several, as a tuple of strings.

    Raises:
        UserError: it is something else.
    """
    strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for string in strings:
        if not isinstance(string, str):
            raise UserError(f"{name}: expected a string, or a list of them; found {string!r:.80}")
    return strings


def _whole(value: Any) -> int | None:
    """A whole number of any library as an int; None for anything else, True and False included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
