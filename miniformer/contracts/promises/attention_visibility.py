"""Which tokens an attention lets a token see: none later, none of another document, no padding, and all that are allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness, each_document
from miniformer.contracts.kit.case import Case, require_equal
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.layout import Layout

MIN_CHANGE = 1e-9
"""The smallest change of an output that counts as one; below it, it is rounding."""
NEAR = 8
"""Across this many positions a visible token must change the output; further away its weight may be too small to notice."""


def influences(harness: AttentionHarness, x_TD: Tensor, layout: Layout, columns: Sequence[int] | None = None) -> Tensor:
    """`[T, C]` bool: whether the output at column t changes when the input at column `columns[c]` does.

    Args:
        harness: the attention.
        x_TD: the tokens of one row.
        layout: its layout.
        columns: the input columns to change; without them, all.
    """
    T, changes = len(x_TD), []
    with torch.no_grad():
        before_TD = harness(x_TD[None], layout)[0]
        for s in range(T) if columns is None else columns:
            changed_TD = x_TD.clone()
            changed_TD[s] += torch.linspace(1.0, 2.0, x_TD.shape[1], dtype=x_TD.dtype)
            changes.append((harness(changed_TD[None], layout)[0] - before_TD).abs().amax(dim=-1) > MIN_CHANGE)
    return torch.stack(changes, dim=1)


def _require_no_influence(case: Case, harness: AttentionHarness, layout: Layout, forbidden: Tensor, why: str) -> None:
    """Require that column s does not influence the output at column t where `forbidden[t, s]`; `why` ends the message.

    Both ways of influence are checked: by a change of the input, and by the gradient.
    """
    x, columns = case.tensor(*layout.shape, harness.module.d_model), case.indices("columns", layout.shape[1])
    leaks = influences(harness, x[0], layout, columns) & forbidden[:, columns]
    if bool(leaks.any()):
        t, c = leaks.nonzero()[0].tolist()
        raise Broken(f"the output at column {t} changes with the input at column {columns[c]}, {why}")
    x = x.requires_grad_()
    out = harness(x, layout)
    for t in columns:
        if not bool(layout.real[0, t]):
            continue
        (gradient,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True, allow_unused=True)
        if gradient is not None and bool((gradient[0].abs().amax(dim=-1)[forbidden[t]] > MIN_CHANGE).any()):
            raise Broken(f"gradients of the output at column {t} reach a column {why}")


@contract("attention", proves=["causal_only"])
def no_look_ahead(case: Case) -> None:
    """In a causal model, a token's output does not depend on later tokens.

    In training: the model learns to read its answer from the future; the loss falls to nearly nothing, and the texts that it
    then writes are noise.

    Seen: transformers#45811, where registering an attention without a mask function dropped the causal mask.
    """
    harness = AttentionHarness.drawn(case, causal=True, same_shapes=True)
    layout = case.layout(rows=1, long=True)
    real = layout.real[0]
    later = layout.positions[0][None, :] > layout.positions[0][:, None]
    same_document = layout.documents[0][None, :] == layout.documents[0][:, None]
    forbidden = later & same_document & real[:, None]
    _require_no_influence(case, harness, layout, forbidden, "which is later in the same document")


@contract("attention")
def documents_do_not_mix(case: Case) -> None:
    """In a packed row, a token's output does not depend on tokens of another document.

    In training: packing, which most runs use, teaches the model that unrelated texts explain each other.

    Seen: transformers#46634, where a mask of ones silently turned off the detection of packed rows.
    """
    harness = AttentionHarness.drawn(case, same_shapes=True)
    layout = case.layout(rows=1, kinds=[drawing.PACKED], long=True)
    documents = layout.documents[0]
    different = documents[None, :] != documents[:, None]
    forbidden = different & layout.real[0][:, None] & layout.real[0][None, :]
    _require_no_influence(case, harness, layout, forbidden, "which is of another document")


@contract("attention")
def padding_is_not_heard(case: Case) -> None:
    """A token's output does not depend on padding, wherever in the row it stands.

    In training: what the model makes of a text depends on how long the other texts of its batch are.

    Seen: TransformerLens#1005, where padding was not masked in generation.
    """
    harness = AttentionHarness.drawn(case, same_shapes=True)
    layout = case.layout(rows=1, kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], long=True)
    forbidden = ~layout.real[0][None, :] & layout.real[0][:, None]
    _require_no_influence(case, harness, layout, forbidden, "which is padding")


@contract("attention", examples=3)
def hears_what_it_may(case: Case) -> None:
    """A token's output depends on every token that the rules let it see, and on none that the attention's own rule hides.

    In training: a window that is off by one, or a half of the context that is never read, costs quality, and nothing points to
    the cause.

    Seen: pytorch#108108, a causal mask aligned to the wrong corner where there were more keys than queries.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(rows=1, long=True)
    x, columns = case.tensor(*layout.shape, harness.module.d_model), case.indices("columns", layout.shape[1])
    influence, visible = influences(harness, x[0], layout, columns), harness.visible(layout)[0][:, columns]
    positions = layout.positions[0]
    far = (positions[:, None] - positions[columns]).abs() > NEAR
    wrong = (influence != visible) & (influence | ~far) & layout.real[0][:, None] & layout.real[0][columns]
    if bool(wrong.any()):
        t, c = wrong.nonzero()[0].tolist()
        s, may_see = columns[c], bool(visible[t, c])
        raise Broken(f"the output at column {t} {'does not change' if may_see else 'changes'} with the input at column {s}, "
                     f"which it {'may' if may_see else 'may not'} see")


@contract("attention")
def packed_is_separate(case: Case) -> None:
    """Each document of a packed row has the outputs that it has in a row of its own.

    In training: results measured on packed rows are not those that a user gets for a single text.

    Seen: nanoVLM#204, where restarting positions was not enough.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.PACKED], long=True)
    _require_same_alone(case, harness, layout)


@contract("attention")
def padded_is_alone(case: Case) -> None:
    """A padded row has the outputs that it has without padding, whether padding is on the left, on the right or in between.

    In training: evaluation in batches, and every answer from a batch, differ from the results for a single text.

    Seen: transformers#22707 and unsloth#4078, where rotary positions of left-padded rows were shared over the batch.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], long=True)
    _require_same_alone(case, harness, layout)


def _require_same_alone(case: Case, harness: AttentionHarness, layout: Layout) -> None:
    x = case.tensor(*layout.shape, harness.module.d_model)
    with torch.no_grad():
        together = harness(x, layout)
        texts = each_document(x, layout)
        for i in case.indices("texts", len(texts)):
            b, columns, tokens = texts[i]
            alone = harness(tokens, Layout.full(1, len(columns)))
            require_equal(together[b, columns], alone[0], f"the text in row {b} beside others and alone")
