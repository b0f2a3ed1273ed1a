"""Bars of training and decoding as SVG, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import beside, peers, rate, rows_of

PICTURES = {"train": "training", "decode": "decoding"}
"""What the name of a part's picture adds to its page's."""
OURS, THEIRS = "#1f77b4", "#b8b8b8"


def draw(results: Mapping[str, Mapping[str, Any]], page: Path) -> dict[str, str]:
    """Draw a picture of each part that was measured, beside the page; gives the files' names by part."""
    drawn = {}
    for part, added in PICTURES.items():
        name = f"{page.stem}-{added}.svg"
        if cells := {title: cell for title, cell in results.get(part, {}).items() if peers(rows_of(cell, "whole"))}:
            _bars(cells, page.with_name(name))
            drawn[part] = name
    return drawn


def _bars(cells: Mapping[str, Any], path: Path) -> None:
    """A panel for each cell: how fast each contestant is beside the best peer, with the range of the rounds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "miniformer", "svg.fonttype": "none", "font.size": 8})
    import matplotlib.pyplot as plt

    columns = min(2, len(cells))
    height = sum(max(len(rows_of(cell, "whole")) for cell in list(cells.values())[i:i + columns]) * 0.2 + 0.5
                 for i in range(0, len(cells), columns))
    figure, axes = plt.subplots(-(-len(cells) // columns), columns, squeeze=False, figsize=(4.5 * columns, height))
    for axis in list(axes.flat)[len(cells):]:
        axis.remove()
    for axis, (title, cell) in zip(axes.flat, cells.items(), strict=False):
        rows = rows_of(cell, "whole")[::-1]
        best = peers(rows_of(cell, "whole"))[0]
        ratios = [beside(row, best) for row in rows]
        axis.barh([row["name"] for row in rows], [one.ratio for one in ratios],
                  xerr=[[one.ratio - one.lowest for one in ratios], [one.highest - one.ratio for one in ratios]],
                  color=[OURS if row["ours"] else THEIRS for row in rows], error_kw={"elinewidth": 0.8})
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_title(f"{title}: 1 = {best['name']}, {rate(best):,.0f} tokens/s", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
