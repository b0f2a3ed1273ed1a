"""Records that Python code hands over: what means a JSON value, such as a scalar of numpy, becomes that value."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any


def plain(value: Any) -> Any:
    """The JSON value that a value of Python means; what means none comes back as it is, to be refused by its field.

    Arrays, series and tensors become lists, their scalars numbers, exact numbers floats (or whole numbers, where they are
    whole), and paths texts.
    """
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, deque)):
        return [plain(item) for item in value]
    if callable(convert := getattr(value, "tolist", None)):  # numpy, torch, pandas and array, none of which is imported here
        try:
            converted = convert()
            return plain(converted) if type(converted) is not type(value) else float(converted)  # a longdouble has no other
        except (TypeError, ValueError, RuntimeError):  # such as a sparse tensor
            return value
    if isinstance(value, (Decimal, Fraction)):
        return _number(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _number(value: Decimal | Fraction) -> Any:
    """A whole number or a float; NaN and what is too large for a float stay as they are."""
    try:
        return int(value) if value == int(value) else float(value)
    except (OverflowError, ValueError):
        return value
