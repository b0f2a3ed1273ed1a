"""Tables of plain text that stay readable where a terminal is narrow: nothing is cut, and no word is broken."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from .output import result_stream

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GAP = 2
NARROWEST = 20
"""Least characters of a line that a column of words is wrapped to; below it, cells are put below each other."""


def line_width() -> int | None:
    """The longest line that is shown well: COLUMNS, or as wide as the terminal is; None where output goes to a file."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return shutil.get_terminal_size().columns if result_stream().isatty() else None


def table(rows: Sequence[Sequence[str]], width: int | None, *, wrapped: int | None = None, to_the_right: Collection[int] = (),
          headed: bool = True) -> Iterator[str]:
    """The rows as lines of aligned columns; where these are too wide, each row as lines of its own.

    Args:
        rows: equally many cells each; a row that has fewer ends early.
        width: of the longest line; None: as wide as need be.
        wrapped: the column whose words may go on in the next line.
        to_the_right: columns of numbers.
        headed: the first row says what the columns are.
    """
    count = max(map(len, rows))
    # a cell that ends a shorter row may go on below the columns to its right
    widths = [max(len(row[i]) for row in rows if i < len(row) - (len(row) < count)) for i in range(count)]
    room = 0
    if width is not None and sum(widths) + GAP * (count - 1) > width:
        if wrapped is not None:
            room = width - (sum(widths) - widths[wrapped]) - GAP * (count - 1)
        if wrapped is None or room < min(NARROWEST, widths[wrapped]):
            yield from _stacked(rows, width, headed)
            return
        widths[wrapped] = room
    for row in rows:
        cells = [textwrap.wrap(cell, room, break_long_words=False, break_on_hyphens=False) if room and i == wrapped else [cell]
                 for i, cell in enumerate(row)]
        for line in range(max(map(len, cells), default=1) or 1):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            yield (" " * GAP).join(part.rjust(size) if i in to_the_right else part.ljust(size)
                                   for i, (part, size) in enumerate(zip(parts, widths, strict=False))).rstrip()


def labelled(label: str, text: str, width: int | None, indent: int) -> Iterator[str]:
    """A label and a text beside it, which goes on below itself; below the label where there is little room."""
    left = label.ljust(indent)
    if width is None or len(left) + len(text) <= width:
        yield left + text
        return
    if width - indent < NARROWEST:
        yield label.rstrip()
        left = " " * (GAP + len(label) - len(label.lstrip()))
    lines = textwrap.wrap(text, max(width - len(left), 1), break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines):
        yield (" " * len(left) if number else left) + line


def show(console: Console, table: Table) -> None:
    """Print a table; as lines below each other where the console is too narrow for its words and numbers."""
    from rich.measure import Measurement

    if Measurement.get(console, console.options.update(max_width=10_000), table).minimum <= console.width:
        console.print(table)
        return
    columns = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    rows = list(zip(*columns, strict=True))
    lines = [*textwrap.wrap(str(table.title or ""), console.width), *_stacked(rows, console.width, headed=True)]
    console.print("\n".join(lines), highlight=False, markup=False)


def _stacked(rows: Sequence[Sequence[str]], width: int, headed: bool) -> Iterator[str]:
    """Each row as its first cell, and below it the others, each after the name of its column."""
    names = rows[0] if headed else [""] * max(map(len, rows))
    indent = GAP + (max(map(len, names[1:]), default=0) + GAP if headed else 0)
    for row in rows[1:] if headed else rows:
        yield f"{names[0]} {row[0]}".strip()
        for name, cell in zip(names[1:], row[1:], strict=False):
            if cell:
                yield from labelled(" " * GAP + name, cell, width, indent)
