"""Strategies draw valid and varied values: layouts that models meet, and options that a schema allows."""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from miniformer.contracts.kit import drawing
from miniformer.kernel import FeedForward, Norm, Slot, current_registry, options_of
from miniformer.kernel.options import complete


@given(drawing.layouts() | drawing.layouts(long=True))
def test_every_row_has_a_token_and_the_flags_padded_and_packed_are_true(layout):
    assert layout.real.any(dim=1).all()
    if not layout.padded:
        assert layout.real.all()
    if not layout.packed:
        assert all(len(set(row) - {0}) == 1 for row in layout.documents.tolist())
    for positions, documents in zip(layout.positions.tolist(), layout.documents.tolist()):
        for number in set(documents) - {0}:
            of_document = [p for p, d in zip(positions, documents) if d == number]
            assert of_document == list(range(len(of_document)))


def test_full_padded_and_packed_rows_are_all_drawn():
    kinds = set()

    @settings(max_examples=60)
    @given(drawing.layouts())
    def draw(layout):
        kinds.add("packed" if layout.packed else "padded" if layout.padded else "full")

    draw()
    assert kinds == {"full", "padded", "packed"}


@given(drawing.layouts(kinds=[drawing.MIXED]) | drawing.layouts(kinds=[drawing.MIXED], max_length=2))
def test_a_mixed_layout_has_a_full_a_packed_and_a_padded_row(layout):
    assert layout.shape[0] == 3
    if layout.shape[1] == 1:
        return
    rows = layout.documents.tolist()
    assert layout.padded
    assert layout.packed
    assert any(set(row) == {1} for row in rows)
    assert any(len(set(row) - {0}) > 1 for row in rows)
    assert any(set(row) == {0, 1} for row in rows)


@pytest.mark.parametrize("rows", [1, 2, 4])
@given(data=st.data())
def test_a_mixed_layout_has_as_many_rows_as_are_asked_for(rows, data):
    long = data.draw(st.booleans())
    assert data.draw(drawing.layouts(kinds=[drawing.MIXED], rows=rows, long=long)).shape[0] == rows


def test_long_rows_are_often_one_column_over_a_block():
    found = set()

    @settings(max_examples=100)
    @given(drawing.lengths(st.just(5)))
    def draw(length):
        found.add(length)

    draw()
    assert len(found & set(drawing.JUST_OVER)) >= 3
    assert max(found) > 128


@given(st.data(), st.integers(1, 8))
def test_pieces_end_at_the_end(data, length):
    ends = data.draw(drawing.cuts(length))
    assert ends == sorted(set(ends))
    assert ends[-1] == length
    assert ends[0] >= 1


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Many(FeedForward):
    def __init__(self, d_model: int, d_ff: int, *, flag: bool = False, part: Annotated[float, Field(gt=0, lt=1)] = 0.5,
                 size: Annotated[int | None, Field(ge=2, multiple_of=2)] = None, mode: Literal["a", "b"] = "a",
                 colour: Colour = Colour.RED, inner: Slot[Norm] | None = None, tables: Mapping[str, int] | None = None,
                 needed: Annotated[int, Field(ge=3, le=5)]) -> None:
        super().__init__(d_model, d_ff)

    def forward(self, x, context):
        return x


def test_choices_keep_to_the_schema_and_start_with_the_default():
    choices = drawing.choices_of(Many)
    assert choices["flag"] == [False, True]
    assert choices["part"][0] == 0.5
    assert all(0 < part < 1 for part in choices["part"])
    assert choices["size"][0] is None
    assert all(size % 2 == 0 for size in choices["size"][1:])
    assert choices["mode"] == ["a", "b"]
    assert choices["colour"] == [Colour.RED, Colour.BLUE]
    assert {None if spec is None else spec.name for spec in choices["inner"]} == {None, "layernorm", "rmsnorm"}
    assert choices["needed"] == [3, 4, 5]


@given(st.data())
def test_required_options_are_always_drawn_and_all_drawn_options_are_valid(data):
    options = data.draw(drawing.options(Many))
    assert "needed" in options
    options_of(Many).model_validate(options)


@pytest.mark.parametrize("entry", current_registry().entries(), ids=lambda entry: f"{entry.kind}-{entry.name}")
@given(data=st.data())
def test_options_of_every_component_pass_its_schema(entry, data):
    cls = current_registry().load(entry.kind, entry.qualified)
    complete(cls, data.draw(drawing.options(cls)), entry.name)
