"""Miniformer: build, compare and ship small transformers from parts that prove they work together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from miniformer.kernel.distributions import version_of
from miniformer.kernel.renamed import find_moved_modules

if TYPE_CHECKING:
    from miniformer.inference.pipeline import Pipeline

find_moved_modules()

_version = version_of("miniformer")
if _version is None:
    raise ImportError("miniformer finds its own components through its installed metadata; "
                      "run `pip install .` (or `pip install -e .`) in its folder first")
__version__: str = _version


def load(path: str | Path) -> Pipeline:
    """A trained model, ready to use, from its run folder or a folder that holds one; see `inference.pipeline.Pipeline`.

    Raises:
        UserError: no model is there, it is damaged, or a component of it is not installed.
    """
    from miniformer.inference.pipeline import Pipeline  # imports torch

    return Pipeline.load(path)


def plain(enabled: bool = True) -> AbstractContextManager[None]:
    """Compute with plain torch inside a `with`, without any of the fast paths; with `enabled=False`, with them again.

    Use it to find out whether a number comes from a fast path. It also works for models that were built before. The
    environment variable MINIFORMER_PLAIN=1 asks for it in a whole process; see `ops.switch.plain`.
    """
    from miniformer.ops import switch  # imports torch

    return switch.plain(enabled)
