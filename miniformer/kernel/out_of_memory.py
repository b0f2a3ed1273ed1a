"""Memory that ran out, in one error: Python, numpy, torch on each device and the operating system have one each. No torch."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MiniformerError, OutOfMemory

TOLD = re.compile(r"can't allocate memory|cannot allocate memory|out of memory|not enough memory|bad_alloc|"
                  r"unable to allocate|storage size calculation overflowed|invalid buffer size", re.IGNORECASE)
"""How libraries say it; torch raises a plain RuntimeError for the CPU."""
ASKED = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) ?(bytes|[KMGTP]?i?B)", re.IGNORECASE)
SMALLER = "a smaller model, batch or length needs less"


@contextmanager
def memory_errors(advice: str = SMALLER) -> Iterator[None]:
    """Raise an `OutOfMemory` in place of any error inside that means that memory ran out.

    Args:
        advice: what needs less memory; the end of the error's text.
    """
    try:
        yield
    except MiniformerError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"memory ran out{_asked(error)}; {advice}") from error


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    names = {cls.__name__ for cls in type(error).__mro__}
    return "OutOfMemoryError" in names or (isinstance(error, RuntimeError) and TOLD.search(str(error)) is not None)


def _asked(error: BaseException) -> str:
    """How much was asked for at once, if the error says so."""
    found = ASKED.search(str(error))
    if found is None:
        return ""
    size, unit = float(found[1]), found[2]
    return f": {size / 2**30:,.2f} GiB more were asked for" if unit == "bytes" else f": {found[1]} {unit} more were asked for"
