"""One way to run a module of any kind: tensors in, tensors out, row b of what comes out made from row b of what goes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.kernel.context import Context, Record

from . import drawing
from .case import Case, seeded

MODULES = ("attention", "position", "ffn", "norm", "head")
"""The kinds whose components are modules."""


@dataclass
class ModuleRunner:
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
              options: Mapping[str, Any] | None = None, training: bool = False, long: bool = False) -> ModuleRunner:
        """A component with drawn options, and numbers for it.

        Args:
            batch, length, dtype: of the numbers.
            options: instead of drawn ones.
            training: it may be in training mode too.
            long: the rows may be long too, as far as it takes them.
        """
        module = case.component(dtype, options=options)
        if training:
            set_mode(case, module)
        if long:
            length = case.length(length, min(drawing.LONG, getattr(module, "max_seq_len", drawing.LONG)))
        return cls.of(case, module, case.tensor(batch, length, module.d_model, dtype=dtype))

    @classmethod
    def of(cls, case: Case, module: Any, x: Tensor) -> ModuleRunner:
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


def set_mode(case: Case, module: nn.Module) -> None:
    """Draw whether a module trains. One that draws random numbers then, as with dropout, stays in eval mode: two runs of it
    differ by them."""
    if case.choose("mode", ["evaluation", "training"]) == "training" and draws_in_training(case, module):
        case.story["mode"] = "evaluation"
        module.eval()


def draws_in_training(case: Case, module: nn.Module) -> bool:
    """Whether a module draws random numbers in training mode, in which it is left."""
    module.train()
    with seeded(0), torch.no_grad():
        width = case.last_sizes["d_model"]
        probe = ModuleRunner.of(case, module, torch.randn(1, 20, width, dtype=torch.float64).to(_dtype(module)))
        state = torch.get_rng_state()
        probe.outputs()
        return not torch.equal(torch.get_rng_state(), state)


def _dtype(module: nn.Module) -> torch.dtype:
    """Of its parameters, as far as it has some."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float64)


def _position(module: Any, x: Tensor, context: Context) -> dict[str, Tensor | None]:
    positions = context.layout.positions
    heads = x.view(*x.shape[:2], module.n_heads, -1).transpose(1, 2)
    found: dict[str, Tensor | None] = {"embed": module.embed(x, positions),
                                       "rotate": module.rotate(heads, module.precompute(positions), "q")}
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
