"""Modules that keep something between calls. Those that keep too much say what finds them; the others are correct."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from . import attention, ffn, head, norm, position


class KeepsItsTable(position.PlainRotary):
    """Correct: a table of angles by dtype and device, made anew for longer texts, and of ordinary tensors."""

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.tables: dict = {}

    def precompute(self, positions):
        needed = 1 if positions.is_meta else int(positions.max()) + 1
        table = self.tables.get(positions.device)
        if table is None or len(table) < needed:
            with torch.inference_mode(False):
                table = self.angles(torch.arange(max(needed, self.max_seq_len), device=positions.device)[None])[0, 0]
            self.tables[positions.device] = table
        angles = table[positions][:, None]
        return angles.cos(), angles.sin()


class KeepsItsTableOfOneDtype(position.PlainRotary):
    """A table in the dtype of the first queries."""

    caught_by = "earlier-calls-change-nothing"
    table = None

    def precompute(self, positions):
        return positions

    def rotate(self, x, where, role):
        needed = 1 if where.is_meta else int(where.max()) + 1
        if self.table is None or len(self.table) < needed:
            self.table = self.angles(torch.arange(max(needed, 200), device=where.device)[None])[0, 0].to(x.dtype)
        angles = self.table.to(where.device)[where][:, None]
        return super().rotate(x, (angles.cos(), angles.sin()), role)


class StretchesForGood(position.PlainRotary):
    """Frequencies are stretched for a text longer than `max_seq_len`, and stay so (dynamic NTK scaling)."""

    caught_by = "earlier-calls-change-nothing"
    longest = 0

    def angles(self, positions):
        if not positions.is_meta:
            self.longest = max(self.longest, int(positions.max()) + 1)
        return super().angles(positions) / max(1.0, self.longest / self.max_seq_len)


class KeepsInferenceTensors(position.PlainRotary):
    """The sines of the last positions are kept; those made in inference mode cannot be used where gradients are needed."""

    caught_by = "earlier-calls-change-nothing"
    positions = None

    def precompute(self, positions):
        if self.positions is None or self.positions.device != positions.device or not torch.equal(self.positions, positions):
            self.positions, self.where = positions, super().precompute(positions)
        return self.where


class MasksByLength(attention.Plain):
    """One mask for each length, made for the first layout that has it."""

    caught_by = "earlier-calls-change-nothing"

    def allowed(self, context):
        allowed = super().allowed(context)
        if context.memory is not None or (context.keys is not None and context.keys is not context.layout):
            return allowed
        key = (*context.layout.shape, context.causal, allowed.device)
        self.__dict__.setdefault("masks", {})
        return self.masks.setdefault(key, allowed)


class KeepsTheLastMemory(attention.Plain):
    """The keys of a memory are kept, and used for the next memory of their shape."""

    caught_by = "earlier-calls-change-nothing"
    kept = None

    def forward(self, x, context, state=None):
        if context.memory is not None:
            if self.kept is None or self.kept.hidden.shape != context.memory.hidden.shape or (
                    self.kept.hidden.dtype != x.dtype or self.kept.hidden.device != x.device):
                self.kept = context.memory
            context = replace(context, memory=self.kept)
        return super().forward(x, context, state)


class MeasuresTheFirstBatch(ffn.Plain):
    """Scales by the size of the first input that it sees."""

    caught_by = "earlier-calls-change-nothing"
    size = None

    def forward(self, x, context):
        if self.size is None:
            self.size = x.detach().abs().max().clamp(min=1e-3)
        return super().forward(x / self.size.to(x), context)


class KeepsAProductOfWeights(ffn.Plain):
    """In evaluation it keeps a product of its weights, which later training leaves behind."""

    caught_by = "earlier-calls-change-nothing"
    product = None

    def forward(self, x, context):
        if self.training:
            return super().forward(x, context)
        if self.product is None or self.product.dtype != x.dtype or self.product.device != x.device:
            self.product = (self.down.weight * 1).detach()
        inner = nn.functional.gelu(self.up(x))
        return nn.functional.linear(inner, self.product, self.down.bias)


class BackwardOnce(norm.Plain):
    """Keeps its weight's scaled form with the graph that made it, which one backward pass uses up."""

    caught_by = "earlier-calls-change-nothing"
    scaled = None

    def forward(self, x):
        if self.scaled is None or self.scaled.dtype != self.weight.dtype or self.scaled.device != x.device:
            self.scaled = self.weight.exp().exp()
        return super().forward(x) * self.scaled


class CountsDown(head.Plain):
    """Its first three calls are scaled, as a warm-up."""

    caught_by = "earlier-calls-change-nothing"
    calls: ClassVar[int] = 0

    def forward(self, x, select=None):
        self.calls = min(self.calls + 1, 3)
        return super().forward(x, select) * (1 + self.calls)
