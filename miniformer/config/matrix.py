"""Which components go together: every pair of an attention and a position encoding, and whatever else is refused.

A verdict is that of `TransformerConfig`, which constructs each component on the meta device; nothing here knows a component.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from miniformer.kernel.errors import UserError
from miniformer.kernel.registry import Availability, current_registry

from .model_config import LAYER_SLOTS, TransformerConfig

DIRECTIONS = {"encoder": False, "decoder": True}
SIZES = {"vocab_size": 32, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 16}


def names(kind: str) -> list[str]:
    """The components of a kind that can be named here, shorthands left out: they stand for others."""
    registry = current_registry()
    found = []
    for entry in registry.entries(kind):
        try:
            if entry.state in (Availability.AVAILABLE, Availability.AMBIGUOUS) and not getattr(
                    registry.load(kind, entry.qualified), "shorthand_for", None):
                found.append(entry.saved)
        except UserError:  # it turned out to be broken
            continue
    return found


def refusal(direction: str, **parts: Any) -> str:
    """Why a model of these parts cannot be built; "" if it can."""
    try:
        TransformerConfig(**SIZES, causal=DIRECTIONS[direction], **parts)
    except UserError as error:
        return str(error)
    return ""


def refused_pairs() -> Iterator[tuple[str, str]]:
    """Pairs of components, of different kinds, that no model can have, and why; each in the directions concerned."""
    for one, other in combinations(LAYER_SLOTS, 2):
        for left in names(one):
            for right in names(other):
                for direction in DIRECTIONS:
                    if why := refusal(direction, **{one: left, other: right}):
                        yield f"{one} {left} with {other} {right} as {direction}", why
