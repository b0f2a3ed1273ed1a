"""The switch between the fast paths of this package and plain torch.

A fast path computes a value that a public function of torch computes too, only sooner: attention in blocks of queries, linear
layers by oneDNN, matrices packed in advance, the loss without all scores, compiled decoding steps. Each asks `is_plain` when it
is called, so the switch also works for a model that was built before. Switch to plain torch to find out whether a wrong or
surprising number comes from a fast path.

Plain torch is `F.linear` for linear layers, `F.scaled_dot_product_attention` for attention, and for a loss the head's scores
and `F.cross_entropy`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)
_plain: ContextVar[bool] = ContextVar("plain", default=os.environ.get("MINIFORMER_PLAIN", "0") not in ("", "0"))

is_plain: Callable[[], bool] = _plain.get
"""Whether plain torch is asked for here; the variable's own method, which takes 20 ns. Not for code that Dynamo traces."""


@contextmanager
def plain(enabled: bool = True) -> Iterator[None]:
    """Compute with plain torch inside, or with `enabled=False` by the fast paths again.

    Uses nest. Without any, the environment variable MINIFORMER_PLAIN decides, as it was when this module was imported: unset,
    empty or 0 means fast paths. The switch belongs to the context (thread or task) that set it; a thread that is started inside
    begins with what the environment says. A graph that `torch.compile` made elsewhere keeps the paths that it was made with,
    except the blocks of `compile_blocks`, which are not called as graphs inside.
    """
    token = _plain.set(enabled)
    try:
        yield
    finally:
        _plain.reset(token)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_plain_in_graph() -> bool:
    """`is_plain` for code that Dynamo traces: the graph keeps the answer of the moment at which it is made."""
    return is_plain()


def with_this_choice(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which whenever it is called finds the switch as it is now.

    A checkpointed block runs again in backward, which may be in another thread or after `plain` has ended; it must then take
    the paths of its first run.
    """
    enabled = is_plain()

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with plain(enabled):
            return function(*args, **kwargs)

    return call


@cache
def log_path(computed: str, path: str) -> None:
    """Log which path computed something, once for each pair. Not for code that Dynamo traces, which cannot log."""
    logger.debug("%s: %s", computed, path)
