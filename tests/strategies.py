"""Random layouts, small enough for oracles that loop."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from miniformer.kernel import Layout

FULL, LEFT, RIGHT, PACKED = "full", "left", "right", "packed"


@st.composite
def layouts(draw, kinds=(FULL, LEFT, RIGHT, PACKED), max_rows=3, max_length=7, rows=None):
    """A layout whose every row has a token that is not padding."""
    rows = draw(st.integers(1, max_rows)) if rows is None else rows
    kind, length = draw(st.sampled_from(kinds)), draw(st.integers(1, max_length))
    if kind == FULL:
        return Layout.full(rows, length)
    if kind == PACKED:
        layout = Layout.from_documents(torch.tensor([draw(documents(length)) for _ in range(rows)]))
        # whoever builds the batch may know more than the constructor
        return replace(layout, padded=not layout.real.all()) if draw(st.booleans()) else layout
    return Layout.from_lengths(draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows)), length, kind)


@st.composite
def documents(draw, length):
    """A row of document numbers: runs 1, 2, ... and padding at its end."""
    real, row = draw(st.just(length) | st.integers(1, length)), []
    while len(row) < real:
        row += [row[-1] + 1 if row else 1] * draw(st.integers(1, real - len(row)))
    return row + [0] * (length - real)


seeds = st.integers(0, 2**16)
