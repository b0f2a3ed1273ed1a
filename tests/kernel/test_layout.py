import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import places

from miniformer.contracts.kit.drawing import LEFT, PACKED, RIGHT, documents, layouts
from miniformer.kernel import Layout

lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any)


@given(lengths, st.integers(0, 3), st.sampled_from([LEFT, RIGHT]))
def test_from_lengths_puts_one_document_on_the_side_away_from_its_padding(lengths, extra, side):
    length = max(lengths) + extra
    for row, n in zip(places(Layout.from_lengths(lengths, length, side)), lengths):
        text, padding = [(i, 1) for i in range(n)], [(0, 0)] * (length - n)
        assert row == (padding + text if side == LEFT else text + padding)


def test_from_lengths_is_as_long_as_its_longest_row():
    assert Layout.from_lengths([2, 5, 1]).shape == (3, 5)


@given(st.integers(1, 8).flatmap(documents))
def test_positions_of_from_documents_restart_in_each_document(row):
    [found] = places(Layout.from_documents(torch.tensor([row])))
    for document in set(row) - {0}:
        assert [p for p, d in found if d == document] == list(range(row.count(document)))
    assert all(p == 0 for p, d in found if d == 0)


def test_full_may_start_later():
    assert places(Layout.full(2, 3, start=5)) == [[(5, 1), (6, 1), (7, 1)]] * 2


def test_facts_are_cautious_unless_stated():
    layout = Layout(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
    assert (layout.padded, layout.packed, layout.aligned) == (True, True, False)


@given(layouts())
def test_facts_never_claim_what_is_not_so(layout):
    rows = places(layout)
    assert layout.padded or all(d != 0 for row in rows for _, d in row)
    assert layout.packed or all(len({d for _, d in row} - {0}) <= 1 for row in rows)
    assert not layout.aligned or all(p == column for row in rows for column, (p, d) in enumerate(row) if d)


@pytest.mark.parametrize(("layout", "facts"), [
    (Layout.full(2, 3), (False, False, True)),
    (Layout.full(2, 3, start=1), (False, False, False)),
    (Layout.from_lengths([3, 3]), (False, False, True)),
    (Layout.from_lengths([3, 3], side="left"), (False, False, True)),
    (Layout.from_lengths([3, 1]), (True, False, True)),
    (Layout.from_lengths([3, 1], side="left"), (True, False, False)),
    (Layout.from_documents(torch.tensor([[1, 1, 2]])), (True, True, False)),
])
def test_constructors_state_the_facts_that_they_know(layout, facts):
    assert (layout.padded, layout.packed, layout.aligned) == facts


@given(layouts())
def test_real_first_and_last_are_of_tokens_that_are_not_padding(layout):
    for b, row in enumerate(places(layout)):
        columns = [column for column, (_, d) in enumerate(row) if d]
        assert layout.real[b].nonzero().flatten().tolist() == columns
        assert (int(layout.first()[b]), int(layout.last()[b])) == (columns[0], columns[-1])


@given(layouts())
def test_following_goes_on_with_the_last_document_of_each_row(layout):
    follow = layout.next_position()
    for row, after in zip(places(layout), places(follow)):
        position, document = [token for token in row if token[1]][-1]
        assert after == [(position + 1, document)]


@given(layouts(rows=2), layouts(rows=2))
def test_then_puts_the_columns_behind(layout, later):
    joined = layout.append_columns(later)
    assert places(joined) == [a + b for a, b in zip(places(layout), places(later))]
    assert joined.padded >= (layout.padded or later.padded)
    assert joined.packed >= (layout.packed or later.packed)
    assert not joined.aligned


@given(layouts(rows=3), st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 7))
def test_rows_and_columns_pick_from_the_grid(layout, index, stop):
    wanted = [places(layout)[i][:stop] for i in index]
    assert places(layout.rows(torch.tensor(index)).columns(stop)) == wanted


def test_a_layout_moves_to_a_device_with_its_facts():
    moved = Layout.from_lengths([2, 1]).to("meta")
    assert moved.positions.device.type == moved.documents.device.type == "meta"
    assert (moved.padded, moved.packed, moved.aligned) == (True, False, True)


@given(layouts(kinds=[PACKED]))
def test_packed_rows_keep_the_document_numbers_they_were_given(layout):
    assert torch.equal(Layout.from_documents(layout.documents).documents, layout.documents)


some = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@given(some, some, st.integers(0, 3))
def test_rows_beside_others_keep_their_latest_columns_after_padding(first, second, more):
    one, other = (Layout.from_lengths(lengths, side="left") for lengths in (first, second))
    columns = max(first + second) + more
    both = one.stack_rows(other, columns)
    assert both.shape == (len(first) + len(second), columns)
    for row, length in enumerate(first + second):
        assert both.documents[row].tolist() == [0] * (columns - length) + [1] * length
        assert both.positions[row].tolist() == [0] * (columns - length) + list(range(length))
    assert both.padded == (not bool(both.real.all())) and not both.packed and not both.aligned


def test_rows_beside_others_lose_their_first_columns_where_fewer_are_wanted():
    both = Layout.full(1, 5).stack_rows(Layout.full(1, 2), 3)
    assert both.positions.tolist() == [[2, 3, 4], [0, 0, 1]] and both.documents.tolist() == [[1, 1, 1], [0, 1, 1]]
