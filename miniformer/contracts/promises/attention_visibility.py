"""What an attention promises about who is heard: nobody later, nobody of another document, no padding, and all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness, alone
from miniformer.contracts.kit.case import Case, same
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.layout import Layout

HEARD = 1e-9
"""A change of an output that is more than rounding."""
NEAR = 8
"""Places across which a token that may be heard is heard; further on, what fades with distance may be less than rounding."""


def heard(attend: AttentionHarness, x_TD: Tensor, layout: Layout, columns: Sequence[int] | None = None) -> Tensor:
    """`[T, C]` bool: the output of column t changes when the token of `columns[c]` does, or without `columns` that of column c;
    `layout` has one row."""
    T, moved = len(x_TD), []
    with torch.no_grad():
        before_TD = attend(x_TD[None], layout)[0]
        for s in range(T) if columns is None else columns:
            changed_TD = x_TD.clone()
            changed_TD[s] += torch.linspace(1.0, 2.0, x_TD.shape[1], dtype=x_TD.dtype)
            moved.append((attend(changed_TD[None], layout)[0] - before_TD).abs().amax(dim=-1) > HEARD)
    return torch.stack(moved, dim=1)


def _unheard(case: Case, attend: AttentionHarness, layout: Layout, forbidden: Tensor, who: str) -> None:
    """No real token hears of a column where `forbidden` `[T, T]`, by change and by gradient."""
    x, columns = case.tensor(*layout.shape, attend.module.d_model), case.some("columns", layout.shape[1])
    leak = heard(attend, x[0], layout, columns) & forbidden[:, columns]
    if bool(leak.any()):
        t, c = leak.nonzero()[0].tolist()
        raise Broken(f"the output at column {t} changes with the input at column {columns[c]}, {who}")
    x = x.requires_grad_()
    out = attend(x, layout)
    for t in columns:
        if not bool(layout.real[0, t]):
            continue
        (slope,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True, allow_unused=True)
        if slope is not None and bool((slope[0].abs().amax(dim=-1)[forbidden[t]] > HEARD).any()):
            raise Broken(f"gradients of the output at column {t} reach a column {who}")


@contract("attention", proves=["causal_only"])
def no_look_ahead(case: Case) -> None:
    """In a causal model, no token hears of a later one.

    In training: the model learns to read its answer from the future; the loss falls to nearly nothing, and what it then writes
    is noise.

    Seen: transformers#45811, where registering an attention without a mask function dropped the causal mask.
    """
    attend = AttentionHarness.drawn(case, causal=True)
    layout = case.layout(rows=1, long=True)
    real = layout.real[0]
    later = layout.positions[0][None, :] > layout.positions[0][:, None]
    same_document = layout.documents[0][None, :] == layout.documents[0][:, None]
    _unheard(case, attend, layout, later & same_document & real[:, None], "which is later in the same document")


@contract("attention")
def documents_do_not_mix(case: Case) -> None:
    """Of several documents in one row, none hears of another.

    In training: packing, which most runs use, teaches the model that unrelated texts explain each other.

    Seen: transformers#46634, where a mask of ones silently turned off the detection of packed rows.
    """
    attend = AttentionHarness.drawn(case)
    layout = case.layout(rows=1, kinds=[drawing.PACKED], long=True)
    documents = layout.documents[0]
    other = (documents[None, :] != documents[:, None]) & layout.real[0][:, None] & layout.real[0][None, :]
    _unheard(case, attend, layout, other, "which is of another document")


@contract("attention")
def padding_is_not_heard(case: Case) -> None:
    """No token hears of padding, wherever it stands.

    In training: what a text means hangs on the length of its neighbours.

    Seen: TransformerLens#1005, where padding was not masked in generation.
    """
    attend = AttentionHarness.drawn(case)
    layout = case.layout(rows=1, kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], long=True)
    padding = ~layout.real[0][None, :] & layout.real[0][:, None]
    _unheard(case, attend, layout, padding, "which is padding")


@contract("attention", examples=3)
def hears_what_it_may(case: Case) -> None:
    """A token hears of every token that the rules let it see, and of none that its own rule hides.

    In training: a window that is off by one, or a half of the context that is never read, costs quality that nobody can find.

    Seen: pytorch#108108, a causal mask aligned to the wrong corner where there were more keys than queries.
    """
    attend = AttentionHarness.drawn(case)
    layout = case.layout(rows=1, long=True)
    x, columns = case.tensor(*layout.shape, attend.module.d_model), case.some("columns", layout.shape[1])
    hears, may_see, where = heard(attend, x[0], layout, columns), attend.may_see(layout)[0][:, columns], layout.positions[0]
    far = (where[:, None] - where[columns]).abs() > NEAR
    wrong = (hears != may_see) & (hears | ~far) & layout.real[0][:, None] & layout.real[0][columns]
    if bool(wrong.any()):
        t, c = wrong.nonzero()[0].tolist()
        s, may = columns[c], bool(may_see[t, c])
        raise Broken(f"the output at column {t} {'does not change' if may else 'changes'} with the input at column {s}, which "
                     f"it {'may' if may else 'may not'} see")


@contract("attention")
def packed_is_separate(case: Case) -> None:
    """A row packed from documents gives for each what it gives alone.

    In training: what is measured on packed rows is not what users get for their one text.

    Seen: nanoVLM#204, where restarting positions was not enough.
    """
    attend = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.PACKED], long=True)
    _as_alone(case, attend, layout)


@contract("attention")
def padded_is_alone(case: Case) -> None:
    """A padded row gives what it gives alone, with the padding on the left, on the right or in between.

    In training: evaluation in batches, and every batched answer, differ from those for one text.

    Seen: transformers#22707 and unsloth#4078, where rotary positions of left-padded rows were shared over the batch.
    """
    attend = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], long=True)
    _as_alone(case, attend, layout)


def _as_alone(case: Case, attend: AttentionHarness, layout: Layout) -> None:
    x = case.tensor(*layout.shape, attend.module.d_model)
    with torch.no_grad():
        together = attend(x, layout)
        texts = alone(x, layout)
        for b, columns, tokens in (texts[i] for i in case.some("texts", len(texts))):
            by_itself = attend(tokens, Layout.full(1, len(columns)))
            same(together[b, columns], by_itself[0], f"the text in row {b} beside others and alone")
