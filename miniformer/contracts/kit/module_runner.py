"""Runs a module of any kind the same way: an input tensor, and an output tensor from each method of its kind.

The first dimension is the batch: row b of an output is computed from row b of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.kernel.context import Context, Record
from miniformer.kernel.interfaces import PositionEncoding

from . import drawing
from .case import Case, seeded
from .fixed_draws import fixed_draws

MODULE_KINDS = ("attention", "position", "ffn", "norm", "head")
"""The kinds whose components are modules."""
RANDOM_TRAINING = "training mode (it draws random numbers)"
"""How `Case.unseen` says that a module was looked at in eval mode only."""


@dataclass
class ModuleRunner:
    """A module with an input, run through all methods of its kind.

    Attributes:
        module: the component.
        x: the input `[B, T, D]`.
        kind: the component's kind.
        causal: whether tokens look back only.
        records: the values that the module recorded in the last run.
        fixed: whether each run draws the same random numbers.
    """

    module: Any
    x: Tensor
    kind: str
    causal: bool
    records: list[Record]
    fixed: bool = False

    @classmethod
    def drawn(cls, case: Case, *, batch: int = 2, length: int = 5, dtype: torch.dtype = torch.float64,
              options: Mapping[str, Any] | None = None, training: bool = False, long: bool = False, edges: bool = False,
              same_shapes: bool = False) -> ModuleRunner:
        """A component with drawn options, and a drawn input for it.

        Args:
            batch, length, dtype: shape and dtype of the input.
            options: options; without them, they are drawn.
            training: whether training mode may be drawn.
            long: whether rows may be long, up to the component's `max_seq_len`.
            edges: whether rows may have as many columns as one of `EDGES`, up to `max_seq_len`.
            same_shapes: all runs will have inputs of one shape. In training mode they then have the same draws, so that they
                can be compared although the module draws random numbers.
        """
        module = case.component(dtype, options=options)
        fixed = training and set_mode(case, module, same_shapes)
        if long or edges:
            at_most = min(drawing.LONG, getattr(module, "max_seq_len", drawing.LONG))
            length = case.edge_length(length, at_most) if edges else case.length(length, at_most)
        return cls.of(case, module, case.tensor(batch, length, module.d_model, dtype=dtype), fixed)

    @classmethod
    def of(cls, case: Case, module: Any, x: Tensor, fixed: bool = False) -> ModuleRunner:
        """A runner of a component that is built already."""
        return cls(module, x, case.under_test.kind, bool(getattr(module, "causal_only", False)), [], fixed)

    def outputs(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """The outputs by the name of the method, for `x` or the runner's own input; the first dimension is the batch."""
        x = self.x if x is None else x
        context = Context.plain(x, causal=self.causal)
        self.records = context.records
        with fixed_draws() if self.fixed else nullcontext():
            by_method = METHODS[self.kind](self.module, x, context)
        return {name: value for name, value in by_method.items() if value is not None}

    def joined(self, x: Tensor | None = None) -> Tensor:
        """All outputs as one tensor `[B, N]`."""
        return torch.cat([value.flatten(1).to(torch.float64) for value in self.outputs(x).values()], dim=1)


def set_mode(case: Case, module: nn.Module, same_shapes: bool = False) -> bool:
    """Draw whether a module is in training mode; whether it is, and needs `fixed_draws` there.

    A module that draws random numbers in training, as dropout does, can be given the same ones in passes that have inputs of
    one shape. Where a check compares other passes, such a module stays in eval mode.

    Args:
        case: what is drawn from; its `unseen` says so if training mode was left out.
        module: the component.
        same_shapes: whether the check compares only passes with fixed draws and inputs of one shape.
    """
    if case.choose("mode", ["evaluation", "training"]) == "evaluation" or not draws_in_training(case, module):
        return False
    if not same_shapes:
        case.story["mode"] = "evaluation"
        case.unseen.add(RANDOM_TRAINING)
        module.eval()
    return same_shapes


def draws_in_training(case: Case, module: nn.Module) -> bool:
    """Whether a module draws random numbers in training mode. The module is left in that mode."""
    module.train()
    with seeded(0), torch.no_grad():
        width = case.last_sizes["d_model"]
        runner = ModuleRunner.of(case, module, torch.randn(1, 20, width, dtype=torch.float64).to(_dtype(module)))
        state = torch.get_rng_state()
        runner.outputs()
        return not torch.equal(torch.get_rng_state(), state)


def _dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the module's parameters; float64 if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float64)


def _position(module: Any, x: Tensor, context: Context) -> dict[str, Tensor | None]:
    positions = context.layout.positions
    heads = x.view(*x.shape[:2], module.n_heads, -1).transpose(1, 2)
    by_hook: dict[str, Tensor | None] = {"embed": module.embed(x, positions),
                                         "rotate": module.rotate(heads, module.precompute(positions), "q")}
    for name in ("bias", "causal_bias"):
        bias = bias_of(module, name, positions, positions)
        by_hook[name] = None if bias is None else bias.expand(x.shape[0], -1, -1, -1)
    return by_hook


def bias_of(encoding: PositionEncoding, name: str, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
    """What the hook `bias` or `causal_bias` gives. That of a causal model is of no matter at keys later than their query: 0."""
    bias: Tensor | None = getattr(encoding, name)(q_positions, k_positions)
    if bias is None or name == "bias" or bias.ndim != 4:
        return bias
    return bias.masked_fill(k_positions[:, None, None, :] > q_positions[:, None, :, None], 0)


METHODS: dict[str, Callable[[Any, Tensor, Context], dict[str, Tensor | None]]] = {
    "attention": lambda module, x, context: {"forward": module(x, context)},
    "position": _position,
    "ffn": lambda module, x, context: {"forward": module(x, context)},
    "norm": lambda module, x, context: {"forward": module(x)},
    "head": lambda module, x, context: {"forward": module(x), "summary": module.summary(x, context.layout)},
}
