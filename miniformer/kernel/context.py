"""What travels read-only beside the tensor: layout, masks, position signals, memory; and a place to record values.

The context is the only thing that grows: a new field changes no component's signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from .layout import Layout
from .masks import CAUSAL, SAME_DOCUMENT, Mask, MaskRule, build_mask

if TYPE_CHECKING:
    from .interfaces import PositionEncoding

Role = Literal["q", "k"]


class Record(NamedTuple):
    """A value that a component noted during a forward; one with `loss` is added to the training loss."""

    name: str
    value: Tensor
    loss: bool


class Signal(NamedTuple):
    """A position encoding with what it computed once for this forward."""

    encoding: PositionEncoding
    where: Any
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What cross-attention looks at: hidden states `[B, S, D]` of another sequence, and their layout."""

    hidden: Tensor
    layout: Layout


@dataclass(frozen=True, slots=True)
class Context:
    """The facts of one forward.

    Attributes:
        layout: where the T tokens of this call sit.
        causal: no token may look at a later one.
        keys: layout of every token so far, those that states remember before those of this call; None: `layout`.
        memory: where it is set, an attention takes keys and values from there instead of from its input.
        signal: the position encoding of the layer that is running.
        records: what components noted; shared by all contexts derived from this one.
        masks: masks prepared so far in this forward, by rule.
    """

    layout: Layout
    causal: bool = False
    keys: Layout | None = None
    memory: Memory | None = None
    signal: Signal | None = None
    records: list[Record] = field(default_factory=list)
    masks: dict[MaskRule | None, Mask] = field(default_factory=dict, repr=False)

    @classmethod
    def plain(cls, x: Tensor, *, causal: bool = False, records: list[Record] | None = None) -> Context:
        """The context of `x` `[B, T, ...]` taken as unpadded rows of one document each.

        A component that hands some of its tokens to an inner one gives its own `records`, so that nothing is lost.
        """
        return cls(Layout.full(x.shape[0], x.shape[1], device=x.device), causal, records=[] if records is None else records)

    def mask(self, rule: MaskRule | None = None) -> Mask:
        """Who may look at whom: same document, not later if `causal`, and the component's own `rule`."""
        if rule not in self.masks:
            base: MaskRule = SAME_DOCUMENT & CAUSAL if self.causal else SAME_DOCUMENT
            self.masks[rule] = build_mask(base if rule is None else base & rule, self.layout,
                                       self.keys or self.layout, latest=self.memory is None)
        return self.masks[rule]

    def rotate(self, x: Tensor, role: Role) -> Tensor:
        """Queries or keys `[B, H, T, E]` of this call with the layer's position encoding applied."""
        return x if self.signal is None else self.signal.encoding.rotate(x, self.signal.where, role)

    @property
    def bias(self) -> Tensor | None:
        """`[B or 1, H, T, S]` to add to the attention scores, or None."""
        return None if self.signal is None else self.signal.bias

    def record(self, name: str, value: Tensor, *, loss: bool = False) -> None:
        """Note a value; with `loss`, a scalar that is added to the training loss, already scaled."""
        self.records.append(Record(name, value, loss))

    def auxiliary_loss(self) -> Tensor | None:
        """The sum of what was recorded with `loss`, or None."""
        losses = [record.value for record in self.records if record.loss]
        return sum(losses[1:], losses[0]) if losses else None

    def signals(self, encodings: Sequence[PositionEncoding]) -> list[Signal]:
        """What each encoding computes once for this forward."""
        queries, keys = self.layout.positions, (self.keys or self.layout).positions
        if queries is keys and self.layout.aligned and not self.layout.padded:
            queries = keys = queries[:1]  # all rows are alike, so one bias serves them
        return [Signal(encoding, encoding.precompute(self.layout.positions),
                       (encoding.causal_bias if self.causal else encoding.bias)(queries, keys)) for encoding in encodings]

    def for_memory(self, memory: Memory) -> Context:
        """The context of a cross-attention to `memory`, which sees all of its own document there."""
        return replace(self, causal=False, keys=memory.layout, memory=memory, signal=None, masks={})
