"""Figures of cells: medians, ranges, and how one row stands beside another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from miniformer.bench.rounds import Sample
from miniformer.bench.rounds import figures as told


class Beside(NamedTuple):
    """The median of a row's ratios to another one of the same rounds, with the lowest and the highest."""

    ratio: float
    lowest: float
    highest: float


def rows_of(cell: Mapping[str, Any], figure: str) -> list[Mapping[str, Any]]:
    """Rows that have a figure, the fastest first, each contestant with the number of threads that suits it best."""
    rows = [row for row in cell["rows"] if figure in row.get("rates", {}) and row["name"] != "machine"]
    rows.sort(key=lambda row: -rate(row, figure))
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        best.setdefault(row["name"], row)
    return list(best.values())


def rate(row: Mapping[str, Any], figure: str = "whole") -> float:
    """The median of a row's rounds."""
    return median(row["rates"][figure])


def beside(row: Mapping[str, Any], other: Mapping[str, Any], figure: str = "whole") -> Beside:
    """A row beside another one of its cell."""
    both = told(_samples(row, figure), _samples(other, figure))
    return Beside(both["ratio"], both["ratio_lowest"], both["ratio_highest"])


def machine_peak(cell: Mapping[str, Any]) -> float | None:
    """The best that the machine itself reached in the cell: operations, or bytes read, per second."""
    for row in cell["rows"]:
        if row["name"] == "machine" and "rates" in row:
            return max(row["rates"]["whole"])
    return None


def named(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Those that are called so, in their order."""
    return [row for row in rows if row["name"] in names]


def peers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are not ours, in their order."""
    return [row for row in rows if not row["ours"]]


def utilisation(row: Mapping[str, Any], cell: Mapping[str, Any]) -> float | None:
    """Training: FLOPs of the model over those of the machine's product. Decoding: bytes read over those that it reads."""
    peak = machine_peak(cell)
    if peak is None:
        return None
    if "bytes_per_step" in row:
        return rate(row, "steady") / cell["setting"]["rows"] * row["bytes_per_step"] / peak
    return 3 * row["flops_per_token"] * rate(row) / peak


def _samples(row: Mapping[str, Any], figure: str) -> list[Sample]:
    return [Sample(value, row["peak_bytes"]) for value in row["rates"][figure]]
