"""Who may look at whom: rules over (position, document), and the masks that attention kernels receive. True = may attend.

Rules speak of positions and documents, never of columns, so windows, decoding states, left padding and packing need no special
case. Rules are hashable: each mask is built once per forward and found again by its rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .layout import Layout
from .renamed import old_attributes


class MaskRule(ABC):
    """A predicate over the places of a query and a key.

    Subclass it as a frozen dataclass, so that equal rules compare equal. A rule lets every token attend to itself, so that no
    row of a self-attention is empty.
    """

    @abstractmethod
    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        """`[B, T, S]` bool: True where query t may attend to key s."""

    @property
    def parts(self) -> frozenset[MaskRule]:
        """The rules that must all allow a pair for this one to allow it."""
        return frozenset({self})

    def __and__(self, other: MaskRule) -> MaskRule:
        return AllOf(self.parts | other.parts)


@dataclass(frozen=True)
class AllOf(MaskRule):
    """Allows what every one of `rules` allows; `rule & rule` makes it."""

    rules: frozenset[MaskRule]

    @property
    def parts(self) -> frozenset[MaskRule]:
        return self.rules

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        allowed, *more = (rule.allows(queries, keys) for rule in self.rules)
        for also_allowed in more:
            allowed = allowed & also_allowed
        return allowed


@dataclass(frozen=True)
class SameDocument(MaskRule):
    """Query and key belong to one document. Padding is document 0, so it sees only padding."""

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return queries.documents[:, :, None] == keys.documents[:, None, :]


@dataclass(frozen=True)
class Causal(MaskRule):
    """The key is not later than the query."""

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return queries.positions[:, :, None] >= keys.positions[:, None, :]


@dataclass(frozen=True)
class Window(MaskRule):
    """The key is less than `size` positions away from the query: a window of `size` tokens, the query included."""

    size: int

    def allows(self, queries: Layout, keys: Layout) -> Tensor:
        return (queries.positions[:, :, None] - keys.positions[:, None, :]).abs() < self.size


SAME_DOCUMENT, CAUSAL = SameDocument(), Causal()


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask as attention kernels receive it.

    It is a type of its own, so that no raw tensor, in which True may mean "masked out", can take its place.

    Attributes:
        allowed: `[B, 1, T, S]` bool, True = may attend; None: everything, unless `causal`.
        causal: row t may attend to columns s <= t; set only where `allowed` is None and T = S.
    """

    allowed: Tensor | None = None
    causal: bool = False


def build_mask(rule: MaskRule, queries: Layout, keys: Layout, *, latest: bool = True) -> Mask:
    """Build the mask of `rule`, in the cheapest form that the layouts' facts allow.

    Args:
        rule: who may look at whom.
        queries: layout of the T query tokens.
        keys: layout of the S key tokens; the same object as `queries` if there is neither state nor memory.
        latest: the queries are the last of the keys (self-attention), not tokens of another sequence.
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
    if not latest:  # a padded query that finds no padding in the memory would have nothing to look at: let it see all
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
    return Mask(allowed[:, None])


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
