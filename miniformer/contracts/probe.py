"""One way to run a module of any kind: tensors in, tensors out, row b of what comes out made from row b of what goes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.context import Context, Record

from .case import Case

MODULES = ("attention", "position", "ffn", "norm", "head")
"""The kinds whose components are modules."""


@dataclass
class Probe:
    """A module with an input `[B, T, D]` and what its kind's methods make of it.

    Attributes:
        module: the component.
        x: the input.
        causal: whether tokens only look back.
        records: what the module noted in the last run.
    """

    module: Any
    x: Tensor
    kind: str
    causal: bool
    records: list[Record]

    @classmethod
    def drawn(cls, case: Case, *, batch: int = 2, length: int = 5, dtype: torch.dtype = torch.float64,
              options: Mapping[str, Any] | None = None) -> Probe:
        """A component with drawn options, and numbers for it."""
        module = case.component(dtype, options=options)
        return cls.of(case, module, case.tensor(batch, length, module.d_model, dtype=dtype))

    @classmethod
    def of(cls, case: Case, module: Any, x: Tensor) -> Probe:
        """A probe of a component that is there already."""
        return cls(module, x, case.subject.kind, bool(getattr(module, "causal_only", False)), [])

    def outputs(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """What the methods of the module's kind return, by method; the first dimension is the batch."""
        x = self.x if x is None else x
        context = Context.plain(x, causal=self.causal)
        self.records = context.records
        out = RUN[self.kind](self.module, x, context)
        return {name: value for name, value in out.items() if value is not None}

    def joined(self, x: Tensor | None = None) -> Tensor:
        """All outputs as one tensor `[B, N]`."""
        return torch.cat([value.flatten(1).to(torch.float64) for value in self.outputs(x).values()], dim=1)


def _position(module: Any, x: Tensor, context: Context) -> dict[str, Tensor | None]:
    positions = context.layout.positions
    heads = x.view(*x.shape[:2], module.n_heads, -1).transpose(1, 2)
    found: dict[str, Tensor | None] = {"embed": module.embed(x, positions),
                                       "rotate": module.rotate(heads, module.prepare(positions), "q")}
    for name in ("bias", "causal_bias"):
        bias = getattr(module, name)(positions, positions)
        found[name] = None if bias is None else bias.expand(x.shape[0], -1, -1, -1)
    return found


RUN: dict[str, Callable[[Any, Tensor, Context], dict[str, Tensor | None]]] = {
    "attention": lambda module, x, context: {"forward": module(x, context)},
    "position": _position,
    "ffn": lambda module, x, context: {"forward": module(x, context)},
    "norm": lambda module, x, context: {"forward": module(x)},
    "head": lambda module, x, context: {"forward": module(x), "summary": module.summary(x, context.layout)},
}
