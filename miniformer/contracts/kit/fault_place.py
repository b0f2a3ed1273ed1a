"""Where a component failed: the innermost line of its own code, in one sentence."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from types import FrameType

import hypothesis
import torch

import miniformer

MINIFORMER, CONTRACTS = Path(miniformer.__file__).parent, Path(__file__).parents[1]
LONGEST_MESSAGE, LONGEST_LINE = 300, 120


PYTHON = Path(sysconfig.get_path("stdlib"))
LIBRARIES = tuple(Path(str(module.__file__)).parent for module in (torch, hypothesis))
"""Those that only pass a fault on, so that nobody looks for it there."""


@cache
def _is_library(filename: str) -> bool:
    """Whether a file is one of Python's library, of torch or of hypothesis."""
    if filename.startswith(("<frozen ", "<eval_with_key>")):
        return True
    path = Path(filename)
    if any(path.is_relative_to(folder) for folder in LIBRARIES):
        return True
    return path.is_relative_to(PYTHON) and "site-packages" not in path.relative_to(PYTHON).parts  # packages may be inside


def place_of(error: BaseException) -> str:
    """The innermost line that is a component's own: outside miniformer, torch and Python's library.

    A component of miniformer itself has no such line; of it, the innermost line outside the contract kit is told. "" if no
    component was running.
    """
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)
              if not _is_library(frame.f_code.co_filename)]
    of_others = [where for where in frames if not Path(where[0].f_code.co_filename).is_relative_to(MINIFORMER)]
    components = of_others or [where for where in frames if not Path(where[0].f_code.co_filename).is_relative_to(CONTRACTS)]
    if components:
        return _sentence(*components[-1])
    # a failed comparison may stand for an exception of the component, which then is its context
    return "" if error.__context__ is None else place_of(error.__context__)


def _sentence(frame: FrameType, line: int) -> str:
    """Such as "acme/parts.py:31 in forward: `return self.out(y)`"."""
    code = frame.f_code
    path = Path(code.co_filename)
    depth = str(frame.f_globals.get("__name__", "")).count(".") + 1 + (path.name == "__init__.py")
    text = linecache.getline(code.co_filename, line).strip()
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    return f"{'/'.join(path.parts[-depth:])}:{line} in {code.co_name}" + (f": `{text}`" if text else "")


def message_of(error: BaseException, whole: bool = False) -> str:
    """The text of an error without the addresses of objects, which differ from process to process.

    Args:
        error: any error.
        whole: leave its lines and its length as they are.
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))
    return text if whole else " ".join(text.split())[:LONGEST_MESSAGE]
