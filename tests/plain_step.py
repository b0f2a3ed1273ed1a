"""The step of a static feed, not compiled, which takes long."""

from functools import partial

from miniformer.decoding.compiled import _step


def plain_step(*given):
    """What runs a step, again and again."""
    return partial(_step, *given)
