"""Who may look at whom: hashable rules over (position, document), and the mask a kernel is given. True = may attend.

Rules never speak of columns, so windows, decoding states, left padding and packing need no special case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .layout import Layout


class MaskRule(ABC):
    """A predicate over a query's and a key's place. Subclass it as a frozen dataclass, so that equal rules are equal.

    A rule lets every token attend to itself, so that no row of a self-attention is empty.
    """

    @abstractmethod
    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        """`[B, T, S]` bool, True where query t may attend to key s."""

    @property
    def parts(self) -> frozenset[MaskRule]:
        """The rules of which this one is the conjunction."""
        return frozenset({self})

    def __and__(self, other: MaskRule) -> MaskRule:
        return AllOf(self.parts | other.parts)


@dataclass(frozen=True)
class AllOf(MaskRule):
    """Every one of `rules` allows it; made by `&`."""

    rules: frozenset[MaskRule]

    @property
    def parts(self) -> frozenset[MaskRule]:
        return self.rules

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        first, *others = (rule.allows(queries, keys) for rule in self.rules)
        for other in others:
            first = first & other
        return first


@dataclass(frozen=True)
class SameDocument(MaskRule):
    """Query and key are of one document; padding (document 0) sees only padding."""

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return queries.documents[:, :, None] == keys.documents[:, None, :]


@dataclass(frozen=True)
class Causal(MaskRule):
    """The key is not later than the query."""

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return queries.positions[:, :, None] >= keys.positions[:, None, :]


@dataclass(frozen=True)
class Window(MaskRule):
    """The key is less than `size` positions away from the query, which counts as one of them."""

    size: int

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return (queries.positions[:, :, None] - keys.positions[:, None, :]).abs() < self.size


SAME_DOCUMENT, CAUSAL = SameDocument(), Causal()


@dataclass(frozen=True, slots=True)
class Mask:
    """What a kernel is given; a type of its own, so that no raw tensor of another polarity can take its place.

    Attributes:
        allowed: `[B, 1, T, S]` bool, True = may attend; None = everything, but for `causal`.
        causal: column s is allowed for row t when s <= t; only with `allowed` None and T = S.
    """

    allowed: Tensor | None = None
    causal: bool = False


def build_mask(rule: MaskRule, queries: Layout, keys: Layout, *, latest: bool = True) -> Mask:
    """The mask of `rule`, in the cheapest form that the layouts' facts allow.

    Args:
        rule: who may look at whom.
        queries: layout of the T query tokens.
        keys: layout of the S key tokens; the very object `queries` where there is no state and no memory.
        latest: the queries are the last of the keys (self-attention), not of another sequence.
    """
    plain = rule.parts <= {SAME_DOCUMENT, CAUSAL} and not (queries.packed or keys.packed)
    if plain and CAUSAL in rule.parts:
        # Right padding is later than every real token, so column order alone keeps it out.
        if queries is keys and queries.aligned:
            return Mask(causal=True)
        if latest and queries.shape[1] == 1 and not keys.padded:
            return Mask()
    elif plain and not queries.padded and not keys.padded:
        return Mask()
    allowed = rule.allows(queries, keys)
    if not latest:  # padding that finds no padding in the memory would have nothing to look at
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
    return Mask(allowed[:, None])
