"""Which components go together: every pair of an attention and a position encoding, and every pair that is refused.

A pair is tried by making a `TransformerConfig` of it, which constructs each component on the meta device. So nothing here knows
a component by name, and a third party's components are judged as ours are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from miniformer.kernel.errors import UserError
from miniformer.kernel.registry import Availability, current_registry

from .model_config import TransformerConfig
from .slots import LAYER_SLOTS

DIRECTIONS = {"encoder": False, "decoder": True}
"""Values of `causal`."""
SIZES = {"vocab_size": 32, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 16}


def names(kind: str) -> list[str]:
    """The usable components of a kind, without shorthands such as `rope-mha`, which stand for other components."""
    registry = current_registry()
    usable = []
    for entry in registry.entries(kind):
        if entry.state not in (Availability.AVAILABLE, Availability.AMBIGUOUS):
            continue
        try:
            component = registry.load(kind, entry.qualified)
        except UserError:  # that it is broken shows only when it is imported
            continue
        if not getattr(component, "shorthand_for", None):
            usable.append(entry.saved)
    return usable


def refusal(direction: str, **parts: Any) -> str:
    """The reason why a model of these parts cannot be built; "" if it can."""
    try:
        TransformerConfig(**SIZES, causal=DIRECTIONS[direction], **parts)
    except UserError as error:
        return str(error)
    return ""


def refused_pairs() -> Iterator[tuple[str, str]]:
    """Each pair of components of different kinds that no model can have, in the direction concerned, with the reason."""
    for left_kind, right_kind in combinations(LAYER_SLOTS, 2):
        for left in names(left_kind):
            for right in names(right_kind):
                for direction in DIRECTIONS:
                    reason = refusal(direction, **{left_kind: left, right_kind: right})
                    if reason:
                        yield f"{left_kind} {left} with {right_kind} {right} as {direction}", reason
