"""Promises of a head about selected positions, padding, its loss, and the table that it may share with the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import each_document
from miniformer.contracts.kit.case import TOLERANCE, Case, require, require_equal
from miniformer.contracts.kit.fixed_draws import fixed_draws
from miniformer.contracts.kit.module_runner import RANDOM_TRAINING, set_mode
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout


@contract("head")
def selecting_is_picking(case: Case) -> None:
    """The outputs at selected positions are the outputs at all positions, picked there, row by row.

    In training: losses are computed at selected positions and metrics at all, and the two are of different outputs.
    """
    module = case.component()
    set_mode(case, module)
    x = case.tensor(2, 5, module.d_model)
    select = torch.tensor(case.draw("select", st.lists(st.booleans(), min_size=10, max_size=10))).view(2, 5)
    with torch.no_grad():
        out = module(x)
        expected = [2, 5, module.n_outputs]
        require(list(out.shape) == expected, f"its output has shape {list(out.shape)}; expected {expected}")
        require_equal(module(x, select), out[select], "at selected positions and at all")


@contract("head")
def summaries_are_blind_to_padding(case: Case) -> None:
    """The summary of a row depends on its tokens only, with padding on the left, on the right or in between.

    In training: the class of a text depends on how long the other texts of its batch are.

    Seen: sentence-transformers#2569, where mean pooling by hand changed with the size of the batch.
    """
    module = case.component()
    fixed = set_mode(case, module, same_shapes=True)
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.FULL], long=True)
    if case.flip("first row full"):
        layout = Layout.full(1, layout.shape[1]).stack_rows(layout, layout.shape[1])
    x = case.tensor(*layout.shape, module.d_model)
    with torch.no_grad():
        if fixed:
            with fixed_draws():
                out = module.summary(x, layout)
            with fixed_draws():
                other = module.summary(torch.where(layout.real[..., None], x, x + 3), layout)
            require_equal(other, out, "summaries in training mode, with other padding")
            module.eval()
            case.unseen.add(f"summaries without padding in {RANDOM_TRAINING}")
        out = module.summary(x, layout)
        require(tuple(out.shape) == (layout.shape[0], module.n_outputs),
                f"summary gives {list(out.shape)}; expected {[layout.shape[0], module.n_outputs]}")
        for b, columns, tokens in each_document(x, layout):
            alone = module.summary(tokens, Layout.full(1, len(columns)))
            require_equal(out[b], alone[0], f"row {b} padded and alone")


@contract("head")
def positions_stand_alone(case: Case) -> None:
    """The output at a position depends on the hidden state at that position only, also in training with random numbers.

    In training: a decoder's head that reads other positions finds the answer at the next one.
    """
    module = case.component()
    fixed = set_mode(case, module, same_shapes=True)
    T = case.length(5)
    x = case.tensor(2, T, module.d_model)
    with torch.no_grad():
        if fixed:  # in another shape it draws other numbers
            _require_deaf_to_others(case, module, x)
            module.eval()
            case.unseen.add(f"positions alone in {RANDOM_TRAINING}")
        out = module(x)
        for t in case.indices("positions", T):
            require_equal(module(x[:, t:t + 1]), out[:, t:t + 1], f"position {t} alone and beside others")


def _require_deaf_to_others(case: Case, module: Head, x: Tensor) -> None:
    """Require that a position has the same output in another text, where each pass draws the same random numbers."""
    others = case.tensor(*x.shape)
    with fixed_draws():
        out = module(x)
    for t in case.indices("positions in another text", x.shape[1]):
        other_text = others.clone()
        other_text[:, t] = x[:, t]
        with fixed_draws():
            beside = module(other_text)
        require_equal(beside[:, t], out[:, t], f"position {t} in another text, in training mode")


@contract("head")
def loss_is_that_of_its_scores(case: Case) -> None:
    """Its `cross_entropy`, and the gradients of that, are those computed from its scores; a target of -1 does not count.

    In training: the loss falls, and the scores that texts are generated from do not get better.
    """
    module = case.component()
    x = case.tensor(2, 5, module.d_model)
    classes = st.lists(st.integers(-1, module.n_outputs - 1), min_size=10, max_size=10)
    targets = torch.tensor(case.draw("targets", classes)).view(2, 5)
    for size in (1.0, 1e-3, 1e2, 1e4):
        _compare_with_scores(module, (size * x).requires_grad_(), targets, size)


def _compare_with_scores(module: Head, x: Tensor, targets: Tensor, size: float) -> None:
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    own = module.cross_entropy(x, targets)
    of_scores = F.cross_entropy(module(x).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    require_equal(own, of_scores, f"its loss and that of its scores, for inputs of size {size:g}")
    gradients = (torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True) for loss in (own, of_scores))
    tolerance = TOLERANCE * max(1.0, size)  # of a softmax in float32, which rounds scores in proportion to their size
    for gradient, expected in zip(*gradients, strict=True):
        require_equal(gradient, expected, "gradients of its loss and of that of its scores", tolerance)


@contract("head")
def ties_are_real(case: Case) -> None:
    """If `tie` returns True, the head uses the embedding's table as its own parameter; if it returns False, the head is
    unchanged.

    In training: the two tables drift apart, although the parameter count says that they are one.

    Seen: Megatron-LM#656, tied weights that came apart in training.
    """
    module = case.component()
    table = nn.Parameter(case.tensor(module.n_outputs, module.d_model))
    x = case.tensor(1, 3, module.d_model)
    with torch.no_grad():
        before = module(x)
        tied = module.tie(table)
        shared = any(p is table for p in module.parameters())
        require(tied == shared, f"tie returns {tied}, and the table is {'' if shared else 'not '}among its parameters")
        if not tied:
            require_equal(module(x), before, "before and after tie returned False")
            return
        out = module(x)
        table.add_(1.0)
        require(not torch.equal(module(x), out), "tie returns True, and the outputs do not change with the table")
