"""Promises of an attention about gradients that short rows do not show: those of long rows, and that of a bias."""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, require
from miniformer.contracts.kit.finite_differences import gradient_errors
from miniformer.contracts.kit.properties import Broken, contract

from .attention_bias import applies_no_bias, with_bias
from .attention_visibility import columns_to_change


@contract("attention", examples=0.3)
def long_rows_have_their_gradients(case: Case) -> None:
    """In rows of 1, 65 or 257 tokens and others, the gradient of the first, the last and other outputs with respect to these
    tokens agrees with finite differences.

    In training: the last chunk of a text, or what chunks hear of each other, teaches nothing, and the loss still falls.
    """
    harness = AttentionHarness.drawn(case)
    T = case.choose("tokens", [65, 257, 1, 129, 33])
    kind = case.choose("kind", [drawing.FULL, drawing.FULL, drawing.LEFT, drawing.PACKED])
    layout, D = drawing.many_columns(kind, 1, T, case.draw("layout", drawing.seeds)), harness.module.d_model
    columns = [t for t in columns_to_change(case, T) if bool(layout.real[0, t])]
    x, weights, moves = case.tensor(1, T, D), case.tensor(len(columns), D), case.tensor(len(columns), D)
    columns = columns or [int(layout.first()[0])]
    weights, moves = weights[:len(columns)], moves[:len(columns)]

    def numeric(step: float) -> Tensor:
        """What each of the columns changes in the weighted outputs."""
        differences = []
        with torch.no_grad():
            for s, move in zip(columns, moves, strict=True):
                shift = torch.zeros_like(x)
                shift[0, s] = step * move
                difference = harness(x + shift, layout) - harness(x - shift, layout)
                differences.append((difference[0, columns] * weights).sum() / (2 * step))
        return torch.stack(differences)

    leaf = x.clone().requires_grad_()
    out = harness(leaf, layout)
    require(out.requires_grad, f"of {T} tokens, no output has a gradient with respect to them")
    (gradient,) = torch.autograd.grad((out[0, columns] * weights).sum(), leaf, allow_unused=True)
    exact = torch.zeros(len(columns), dtype=x.dtype) if gradient is None else (gradient[0, columns] * moves).sum(dim=-1)
    if (errors := gradient_errors(exact, numeric)) is not None:
        raise Broken(f"of {T} tokens, the gradient with respect to the one at column {columns[int(errors.argmax())]} is "
                     f"{float(errors.max()):.0%} off, compared with finite differences")


@contract("attention", skip=applies_no_bias, examples=0.5)
def a_bias_gets_its_gradient(case: Case) -> None:
    """Where an attention says `trains_bias`, the gradient of a bias agrees with finite differences in each head.

    In training: a learned bias, such as T5's, keeps its initial values.

    Seen: flash-attention#332: kernels that take a bias without a gradient for it, or none.
    """
    harness = AttentionHarness.drawn(case, encoded=False, same_shapes=True)
    if not harness.module.trains_bias:
        return
    H, T = harness.module.n_heads, case.choose("tokens", [5, 4, 6, 65])
    layout = drawing.many_columns(case.choose("kind", [drawing.FULL, drawing.LEFT, drawing.PACKED]), 2, T,
                                  case.draw("layout", drawing.seeds))
    x, bias, moves = case.tensor(2, T, harness.module.d_model), case.tensor(1, H, T, T), case.tensor(1, H, T, T)
    weights = case.tensor(2, T, harness.module.d_model) * layout.real[:, :, None]

    def numeric(step: float) -> Tensor:
        """What the bias of each head changes in the weighted outputs, when it moves in a drawn direction."""
        differences = []
        with torch.no_grad():
            for h in range(H):
                shift = torch.zeros_like(bias)
                shift[:, h] = step * moves[:, h]
                difference = with_bias(harness, bias + shift, x, layout) - with_bias(harness, bias - shift, x, layout)
                differences.append((difference * weights).sum() / (2 * step))
        return torch.stack(differences)

    leaf = bias.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((with_bias(harness, leaf, x, layout) * weights).sum(), leaf, allow_unused=True)
    exact = torch.zeros(H, dtype=x.dtype) if gradient is None else (gradient * moves).sum(dim=(0, 2, 3))
    if (errors := gradient_errors(exact, numeric)) is not None:
        raise Broken(f"the gradient of the bias of head {int(errors.argmax())} of {H} is {float(errors.max()):.0%} off, "
                     "compared with finite differences")
