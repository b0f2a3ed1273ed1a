"""What the kit changes inside other libraries while it checks, where they offer no public way.

Each change is made only if the installed version has the names that it needs. The kit works without it too, and says so in its
report where that makes a difference.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def no_constants_of_modules() -> Iterator[bool]:
    """Keep hypothesis from drawing constants that it finds in the source of imported modules.

    It mixes them into its draws, so that the examples of one seed would depend on which modules a process has imported. The
    block is given whether that was possible.
    """
    replaced = _without_constants()
    if replaced is None:
        yield False
        return
    providers, replacements = replaced
    with patch.multiple(providers, **replacements):
        yield True


@cache
def _without_constants() -> tuple[Any, dict[str, Any]] | None:
    """The module of hypothesis that draws, and what takes the place of some of its names; None if it lacks these names."""
    try:
        providers: Any = importlib.import_module("hypothesis.internal.conjecture.providers")
        nothing = providers.Constants()
        remembered = type(providers.CONSTANTS_CACHE)(1024)  # what draws may take; the original holds constants of modules
        if not callable(providers._get_local_constants):
            return None
    except (ImportError, AttributeError, TypeError):
        return None
    return providers, {"_get_local_constants": lambda: nothing, "CONSTANTS_CACHE": remembered}


@contextmanager
def flex_without_compiling() -> Iterator[None]:
    """Let torch's FlexAttention compute its formula directly, as it may without gradients.

    Otherwise each call of it on a CPU is traced anew, which takes a second, and then runs that same formula.
    """
    from torch.nn.attention import flex_attention

    setting = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    if torch.is_grad_enabled() or not hasattr(flex_attention, setting):
        yield
    else:
        with patch.object(flex_attention, setting, True):
            yield
