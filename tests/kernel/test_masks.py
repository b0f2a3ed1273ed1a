from dataclasses import dataclass

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from miniformer.contracts.kit.drawing import FULL, LEFT, PACKED, RIGHT, layouts, seeds
from miniformer.kernel import Causal, Layout, MaskRule, SameDocument, Window
from miniformer.kernel.masks import build_mask

windows = st.none() | st.integers(1, 4)


def rule_of(causal, window):
    rule = SameDocument()
    rule = rule & Causal() if causal else rule
    return rule if window is None else rule & Window(window)


def attend(queries, keys, mask, seed):
    """Attention with what torch's kernel is told, beside the loop that is told the rule."""
    generator = torch.Generator().manual_seed(seed)
    B, T, S = *queries.shape, keys.shape[1]
    q, k, v = (torch.randn(B, 1, n, 2, dtype=torch.float64, generator=generator) for n in (T, S, S))
    fast = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.allowed, is_causal=mask.causal)
    return fast, lambda **rules: oracles.attention(q, k, v, oracles.allowed(queries, keys, **rules))


@given(layouts(rows=2), layouts(rows=2), st.booleans(), windows)
def test_rules_are_predicates_over_position_and_document(queries, keys, causal, window):
    found = rule_of(causal, window).allows(queries, keys)
    assert found.tolist() == oracles.allowed(queries, keys, causal=causal, window=window)


@given(layouts(), st.booleans(), windows, seeds)
def test_a_prepared_mask_gives_every_real_token_what_the_rule_gives(layout, causal, window, seed):
    fast, slow = attend(layout, layout, build_mask(rule_of(causal, window), layout, layout), seed)
    torch.testing.assert_close(fast[:, 0][layout.real], slow(causal=causal, window=window)[:, 0][layout.real])
    assert fast.isfinite().all()


@given(layouts(), st.integers(1, 3), windows, seeds)
def test_a_mask_for_decoding_steps_gives_what_the_rule_gives(layout, steps, window, seed):
    follow = layout.next_position()
    positions = follow.positions + torch.arange(steps)
    step = Layout(positions, follow.documents.expand_as(positions), padded=False, packed=False)
    keys = layout.append_columns(step)
    fast, slow = attend(step, keys, build_mask(rule_of(True, window), step, keys), seed)
    torch.testing.assert_close(fast, slow(causal=True, window=window))


@given(layouts(rows=2), layouts(rows=2), seeds)
def test_a_mask_over_memory_gives_what_the_rule_gives(queries, memory, seed):
    fast, slow = attend(queries, memory, build_mask(SameDocument(), queries, memory, latest=False), seed)
    served = queries.real & torch.tensor([[any(row) for row in rows] for rows in oracles.allowed(queries, memory)])
    torch.testing.assert_close(fast[:, 0][served], slow()[:, 0][served])
    assert fast.isfinite().all()


@pytest.mark.parametrize(("layout", "causal", "dense"), [
    (Layout.full(1, 3), True, False),
    (Layout.full(1, 3), False, False),
    (Layout.from_lengths([3, 2]), True, False),
    (Layout.from_lengths([3, 2]), False, True),
    (Layout.from_lengths([3, 2], side="left"), True, True),
    (Layout.from_documents(torch.tensor([[1, 1, 2]])), True, True),
])
def test_a_tensor_is_made_only_where_the_facts_do_not_spare_it(layout, causal, dense):
    mask = build_mask(rule_of(causal, None), layout, layout)
    assert (mask.allowed is not None) == dense
    assert mask.causal == (causal and not dense)


def test_one_step_over_unpadded_keys_needs_no_tensor():
    layout = Layout.full(2, 3)
    step = layout.next_position()
    mask = build_mask(rule_of(True, None), step, layout.append_columns(step))
    assert mask.allowed is None
    assert not mask.causal


def test_one_step_over_padded_keys_sees_no_padding():
    layout = Layout.from_lengths([3, 2])
    step = layout.next_position()
    mask = build_mask(rule_of(True, None), step, layout.append_columns(step))
    assert mask.allowed.tolist() == [[[[True, True, True, True]]], [[[True, True, False, True]]]]


@given(layouts(kinds=[FULL, LEFT, RIGHT, PACKED]), windows, st.booleans())
def test_every_token_may_attend_to_itself(layout, window, causal):
    assert rule_of(causal, window).allows(layout, layout).diagonal(dim1=1, dim2=2).all()


@given(st.permutations([SameDocument(), Causal(), Window(2), Window(3)]))
def test_conjunctions_are_equal_whatever_their_order(rules):
    a, b, c, d = rules
    assert (a & b) & (c & d) == d & c & b & a
    assert hash((a & b) & (c & d)) == hash(d & c & b & a)


def test_equal_rules_are_equal_keys():
    assert {Window(3): 1}[Window(3)] == 1
    assert Window(3) != Window(4)
    assert SameDocument() & SameDocument() & Causal() == Causal() & SameDocument()


def test_a_rule_of_a_third_party_joins_the_built_in_ones():
    @dataclass(frozen=True)
    class Even(MaskRule):
        def allows(self, queries, keys):
            return (queries.positions[:, :, None] - keys.positions[:, None, :]) % 2 == 0

    layout = Layout.full(1, 3)
    mask = build_mask(SameDocument() & Causal() & Even(), layout, layout)
    assert mask.allowed.tolist() == [[[[True, False, False], [False, True, False], [True, False, True]]]]
