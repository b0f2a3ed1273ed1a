"""What the kit changes inside other libraries while it checks, because they offer no public way.

Each change is made only where the installed version has the names that it needs; without them the kit works as well, but as
described below, a little worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from hypothesis.internal.conjecture import providers


@contextmanager
def no_constants_of_modules() -> Iterator[bool]:
    """Keep hypothesis from drawing constants that it finds in the source of imported modules.

    Hypothesis mixes them into its draws, so that the examples of one seed would depend on which modules a process has imported.
    The block is given whether that was possible: where it was not, examples depend on the seed and on imports.
    """
    with ExitStack() as stack:
        yield _without_constants(stack)


def _without_constants(stack: ExitStack) -> bool:
    if hasattr(providers, "_get_local_constants") and hasattr(providers, "CONSTANTS_CACHE"):
        collection = type(providers._get_local_constants)  # a plain function, which is called with no arguments
        if collection is not type(_without_constants):
            return False
        nothing = _Nothing()
        stack.enter_context(patch.object(providers, "_get_local_constants", lambda: nothing))
        # remembers which constants of modules a draw may take; there is no other way to empty it for a while
        stack.enter_context(patch.object(providers, "CONSTANTS_CACHE", type(providers.CONSTANTS_CACHE)(1024)))
        return True
    # versions before 6.131 draw no such constants
    return not any("local_constants" in name.lower() for name in vars(providers.HypothesisProvider))


class _Nothing:
    """A pool of constants of every type that has none."""

    def set_for_type(self, choice_type: object) -> tuple[()]:
        return ()


@contextmanager
def flex_without_compiling() -> Iterator[None]:
    """Let torch's FlexAttention compute its formula directly, as it may without gradients.

    Otherwise each call of it on a CPU is traced by TorchDynamo anew, which takes a second and runs that formula in the end.
    """
    from torch.nn.attention import flex_attention as flex

    name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    if torch.is_grad_enabled() or not hasattr(flex, name):
        yield
        return
    settings: Any = patch.object(flex, name, True)
    with settings:
        yield
