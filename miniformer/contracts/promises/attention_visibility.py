"""Which tokens an attention lets a token see: none later, none of another document, no padding, and all that are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness, each_document
from miniformer.contracts.kit.case import Case, require_equal, seeded
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.layout import Layout
from miniformer.kernel.masks import SAME_DOCUMENT

MIN_CHANGE = 1e-9
"""The smallest change of an output that counts as one; below it, it is rounding."""
FADED = 1e-5
"""Where a token changes an output by less than this, the next token further away may be too faint to notice."""
CLIFF = 1e-10
"""By this factor no influence falls from one token to the next."""
CLEAR, NEAR = 10.0, 8
"""A change that is clear to see, and the number of columns across which it is expected without a token in between."""


def changes(harness: AttentionHarness, x_BTD: Tensor, layout: Layout, columns: Sequence[int],
            move_D: Tensor | None = None) -> Tensor:
    """`[B, T, C]`: by how much the output at column t of a row changes when the input at its column `columns[c]` does.

    Args:
        harness: the attention.
        x_BTD: the tokens.
        layout: their layout.
        columns: the input columns to change, one after the other, in all rows.
        move_D: what is added there.
    """
    move_D = torch.linspace(1.0, 2.0, x_BTD.shape[2], dtype=x_BTD.dtype) if move_D is None else move_D
    sizes = []
    with torch.no_grad():
        before_BTD = harness(x_BTD, layout)
        for s in columns:
            changed_BTD = x_BTD.clone()
            changed_BTD[:, s] += move_D
            sizes.append((harness(changed_BTD, layout) - before_BTD).abs().amax(dim=-1))
    return torch.stack(sizes, dim=2)


def columns_to_change(case: Case, length: int) -> list[int]:
    """All columns of a short row; of a long one, pairs of neighbours: the first, the last, at the end of a block, and any."""
    if length <= 8:
        return list(range(length))
    ends = [n for n in (16, 32, 64, 128, 256) if n < length]
    starts = {0, length - 2, case.choose("end of a block", ends) - 1, case.draw("column", st.integers(0, length - 2))}
    return sorted({column for start in starts for column in (start, start + 1)})


def _place(layout: Layout, b: int, t: int) -> str:
    return f"column {t}" if layout.shape[0] == 1 else f"column {t} of row {b}"


def _require_no_influence(case: Case, harness: AttentionHarness, layout: Layout, forbidden: Tensor, why: str) -> None:
    """Require that column s does not influence the output at column t of row b where `forbidden[b, t, s]`.

    Both ways of influence are checked: by a change of the input, and by the gradient. `why` ends the message.
    """
    x, columns = case.tensor(*layout.shape, harness.module.d_model), columns_to_change(case, layout.shape[1])
    leaks = (changes(harness, x, layout, columns) > MIN_CHANGE) & forbidden[:, :, columns]
    if bool(leaks.any()):
        b, t, c = leaks.nonzero()[0].tolist()
        raise Broken(f"the output at {_place(layout, b, t)} changes with the input at column {columns[c]}, {why}")
    x = x.requires_grad_()
    out = harness(x, layout)
    for t in columns:
        real = layout.real[:, t]
        (gradient,) = torch.autograd.grad(out[real, t].sum(), x, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        leaks = (gradient.abs().amax(dim=-1) > MIN_CHANGE) & forbidden[:, t] & real[:, None]
        if bool(leaks.any()):
            b, s = leaks.nonzero()[0].tolist()
            raise Broken(f"gradients of the output at {_place(layout, b, t)} reach column {s}, {why}")


@contract("attention", proves=["causal_only"])
def no_look_ahead(case: Case) -> None:
    """In a causal model, a token's output does not depend on later tokens.

    In training: the model learns to read its answer from the future; the loss falls to nearly nothing, and the texts that it
    then writes are noise.

    Seen: transformers#45811, where registering an attention without a mask function dropped the causal mask.
    """
    harness = AttentionHarness.drawn(case, causal=True, same_shapes=True)
    layout = case.layout(max_rows=2, long=True)
    later = layout.positions[:, None, :] > layout.positions[:, :, None]
    forbidden = later & SAME_DOCUMENT.allows(layout, layout) & layout.real[:, :, None]
    _require_no_influence(case, harness, layout, forbidden, "which is later in the same document")


@contract("attention")
def documents_do_not_mix(case: Case) -> None:
    """In a packed row, a token's output does not depend on tokens of another document.

    In training: packing, which most runs use, teaches the model that unrelated texts explain each other.

    Seen: transformers#46634, where a mask of ones silently turned off the detection of packed rows.
    """
    harness = AttentionHarness.drawn(case, same_shapes=True)
    layout = case.layout(max_rows=2, kinds=[drawing.PACKED, drawing.MIXED], long=True)
    both_real = layout.real[:, :, None] & layout.real[:, None, :]
    forbidden = both_real & ~SAME_DOCUMENT.allows(layout, layout)
    _require_no_influence(case, harness, layout, forbidden, "which is of another document")


@contract("attention")
def padding_is_not_heard(case: Case) -> None:
    """A token's output does not depend on padding, wherever in the row it stands.

    In training: what the model makes of a text depends on how long the other texts of its batch are.

    Seen: TransformerLens#1005, where padding was not masked in generation.
    """
    harness = AttentionHarness.drawn(case, same_shapes=True)
    layout = case.layout(max_rows=2, kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.MIXED], long=True)
    forbidden = layout.real[:, :, None] & ~layout.real[:, None, :]
    _require_no_influence(case, harness, layout, forbidden, "which is padding")


@contract("attention", examples=3)
def hears_what_it_may(case: Case) -> None:
    """A token's output depends on every token that the rules let it see, and on none that the attention's own rule hides.
    Measured: tokens are replaced, and an output that stays the same does not depend on them. Influence may fade with distance
    until no number shows it, as in a recurrence with a decay; it may not end between one token and the next.

    In training: a window that is off by one, or a half of the context that is never read, costs quality, and nothing points to
    the cause.

    Seen: pytorch#108108, a causal mask aligned to the wrong corner where there were more keys than queries.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(max_rows=2, long=True)
    x, columns = case.tensor(*layout.shape, harness.module.d_model), columns_to_change(case, layout.shape[1])
    sizes, visible = changes(harness, x, layout, columns), harness.visible(layout)[:, :, columns]
    both_real = layout.real[:, :, None] & layout.real[:, None, columns]
    heard = (sizes > MIN_CHANGE) & ~visible & both_real
    if bool(heard.any()):
        b, t, c = heard.nonzero()[0].tolist()
        raise Broken(f"the output at {_place(layout, b, t)} changes with the input at column {columns[c]}, which it may not "
                     "see")
    nearer = _changes_by_the_token_between(sizes, visible, layout, columns)
    deaf = (nearer > FADED) & visible & both_real
    for seed in range(8):  # a weight may be too small to notice by chance, but not for eight other tokens in its place
        deaf &= sizes <= CLIFF * nearer
        if not bool(deaf.any()):
            return
        with seeded(seed):
            sizes = changes(harness, x, layout, columns, 2 * torch.randn(x.shape[2], dtype=x.dtype))
    b, t, c = deaf.nonzero()[0].tolist()
    at = f"the output at {_place(layout, b, t)} does not change with the input at column {columns[c]}, which it may see"
    raise Broken(at if t == columns[c] else f"{at}; the next token towards it changes it by {float(nearer[b, t, c]):.1e}")


def _changes_by_the_token_between(sizes: Tensor, visible: Tensor, layout: Layout, columns: Sequence[int]) -> Tensor:
    """`[B, T, C]`: the change at column t by the neighbour of column `columns[c]` on the side of t.

    It is 0 where that token was not looked at, and `CLEAR` for the token at t itself. So it is if the neighbour is a token that
    t may not see, as between every other token, and no more than `NEAR` columns away.
    """
    T = layout.shape[1]
    near = (torch.arange(T)[:, None] - torch.tensor(columns)).abs() <= NEAR
    levels, nearer = torch.where(~visible & near, CLEAR, sizes), torch.zeros_like(sizes)
    number = {s: c for c, s in enumerate(columns)}
    for b, real in enumerate(layout.real.tolist()):
        tokens = [t for t in range(T) if real[t]]
        for before, after in pairwise(tokens):
            if before in number and after in number:
                first, second = number[before], number[after]
                nearer[b, after:, first] = levels[b, after:, second]
                nearer[b, :after, second] = levels[b, :after, first]
    for s, c in number.items():
        nearer[:, s, c] = CLEAR
    return nearer


@contract("attention")
def packed_is_separate(case: Case) -> None:
    """Each document of a packed row has the outputs that it has in a row of its own.

    In training: results measured on packed rows are not those that a user gets for a single text.

    Seen: nanoVLM#204, where restarting positions was not enough.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.PACKED, drawing.MIXED], long=True)
    _require_same_alone(case, harness, layout)


@contract("attention")
def padded_is_alone(case: Case) -> None:
    """A padded row has the outputs that it has without padding, whether padding is on the left, on the right or in between.

    In training: evaluation in batches, and every answer from a batch, differ from the results for a single text.

    Seen: transformers#22707 and unsloth#4078, where rotary positions of left-padded rows were shared over the batch.
    """
    harness = AttentionHarness.drawn(case)
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.MIXED], long=True)
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
