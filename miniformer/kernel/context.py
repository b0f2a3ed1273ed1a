"""What travels beside the tensor through a forward: layout, masks, position signals, memory, and recorded values.

A component reads it and changes nothing but `records`. New facts become new fields, so no component's signature ever changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from .layout import Layout
from .masks import CAUSAL, SAME_DOCUMENT, Mask, MaskRule, build_mask
from .position_encoding import PositionEncoding, Role
from .renamed import KeepsOldNames

__all__ = ["Context", "Memory", "Record", "Role", "Signal"]


class Record(NamedTuple):
    """A value that a component recorded during a forward; with `loss`, it is added to the training loss."""

    name: str
    value: Tensor
    loss: bool


class Signal(NamedTuple):
    """A position encoding with its results for this forward: `where` for `rotate`, and the bias."""

    encoding: PositionEncoding
    where: Any
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Memory:
    """The sequence that a cross-attention looks at: hidden states `[B, S, D]` and their layout."""

    hidden: Tensor
    layout: Layout


@dataclass(frozen=True, slots=True)
class Context(KeepsOldNames):
    """The facts of one forward.

    Attributes:
        layout: where the T tokens of this call sit.
        causal: no token may look at a later one.
        keys: layout of all tokens so far: those that states remember, then those of this call. None: `layout`.
        memory: if set, an attention takes keys and values from it instead of from its input.
        signal: the position encoding of the layer that is running.
        records: values that components recorded; shared by all contexts derived from this one.
        masks: the masks built so far in this forward, by rule.
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
        """Make the context of `x` `[B, T, ...]` as unpadded rows of one document each.

        A component that calls an inner component on some of its tokens passes its own `records`, so that the inner one's
        auxiliary losses are not lost.
        """
        return cls(Layout.full(x.shape[0], x.shape[1], device=x.device), causal, records=[] if records is None else records)

    def mask(self, rule: MaskRule | None = None) -> Mask:
        """Say who may look at whom: same document, not later if `causal`, and the component's own `rule`."""
        if rule not in self.masks:
            base: MaskRule = SAME_DOCUMENT & CAUSAL if self.causal else SAME_DOCUMENT
            self.masks[rule] = build_mask(base if rule is None else base & rule, self.layout,
                                       self.keys or self.layout, latest=self.memory is None)
        return self.masks[rule]

    def rotate(self, x: Tensor, role: Role) -> Tensor:
        """Apply the layer's position encoding to queries or keys `[B, H, T, E]` of this call."""
        return x if self.signal is None else self.signal.encoding.rotate(x, self.signal.where, role)

    @property
    def bias(self) -> Tensor | None:
        """The position encoding's bias `[B or 1, H, T, S]` on the attention scores, or None."""
        return None if self.signal is None else self.signal.bias

    def record(self, name: str, value: Tensor, *, loss: bool = False) -> None:
        """Record a value; with `loss`, a scalar that is added to the training loss as it is, already scaled."""
        self.records.append(Record(name, value, loss))

    def auxiliary_loss(self) -> Tensor | None:
        """Sum the values that were recorded with `loss`; None if there are none."""
        losses = [record.value for record in self.records if record.loss]
        return sum(losses[1:], losses[0]) if losses else None

    def signals(self, encodings: Sequence[PositionEncoding]) -> list[Signal]:
        """Let each position encoding compute its part of this forward, once."""
        queries, keys = self.layout.positions, (self.keys or self.layout).positions
        if queries is keys and self.layout.aligned and not self.layout.padded:
            queries = keys = queries[:1]  # all rows are alike, so one bias serves them
        signals = []
        for encoding in encodings:
            bias = encoding.causal_bias if self.causal else encoding.bias
            signals.append(Signal(encoding, encoding.precompute(self.layout.positions), bias(queries, keys)))
        return signals

    def for_memory(self, memory: Memory) -> Context:
        """Make the context of a cross-attention: its keys are all of `memory`, and a token sees its own document there."""
        return replace(self, causal=False, keys=memory.layout, memory=memory, signal=None, masks={})
