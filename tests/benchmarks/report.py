"""`python -m tests.benchmarks.report RESULTS.json PAGE.md`: the second part of docs/performance.md, of what was measured.

What stands in the page before the mark is written by hand and kept; what follows is made anew. Pictures are put beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .figures import beside, machine_peak, peers, rate, rows_of, utilisation
from .goals import GOALS, GPU_GOALS, Results

MARK = "<!-- What follows is made by `python -m tests.benchmarks.report RESULTS.json PAGE.md`. -->"


def document(results: Results, pictures: Mapping[str, str]) -> str:
    """The page from the mark on.

    Args:
        results: what was measured.
        pictures: file of the picture of a part.
    """
    machines = dict.fromkeys(_machine(cell) for cells in results.values() for cell in cells.values() if "setting" in cell)
    lines = [MARK, "", "# Beside its peers", "", *_goals(results)]
    if len(machines) == 1:
        lines += ["All figures: ", *machines, ""]
    for part, title in TITLES.items():
        cells = results.get(part, {})
        if not cells:
            continue
        lines += [f"## {title}", ""]
        if part in pictures:
            lines += [f"![{title}, each contestant beside the best peer]({pictures[part]})", ""]
        for name, cell in cells.items():
            lines += [f"### {name}", "", *_setting(cell)]
            lines += [*([_machine(cell)] if "setting" in cell and len(machines) > 1 else []), "", *tables(part, cell), ""]
    return "\n".join(lines).rstrip() + "\n"


TITLES = {"train": "Training", "overhead": "Lightning's loop", "decode": "Decoding", "data": "Data", "startup": "Start-up"}


def _goals(results: Results) -> Iterator[str]:
    rows = []
    on_gpu = any(cell.get("setting", {}).get("gpu") for cells in results.values() for cell in cells.values())
    goals = GPU_GOALS if on_gpu else GOALS
    for goal in goals:
        ours, theirs, value, met = goal.verdict(results)
        if value is not None:
            rows.append([goal.what, ours, theirs, f"{value:.2f}{goal.unit}", goal.bound,
                         "met" if met else f"missed by {goal.missed_by(value)}"])
    counts = [sum(row[-1].startswith(word) for row in rows) for word in ("met", "missed")]
    yield f"{counts[0]} of {len(goals)} goals are met, {counts[1]} missed, {len(goals) - len(rows)} not measured. Figures"
    yield "without a unit are tokens a second; what has a bound is, without a unit, the ratio of ours to theirs, of each round,"
    yield "and then the median."
    yield ""
    yield from _table(["", "ours", "theirs", "", "goal", ""], rows)
    yield ""


def tables(part: str, cell: Mapping[str, Any]) -> list[str]:
    """The table of a cell."""
    return list({"train": _training, "decode": _decoding, "overhead": _overhead}.get(part, _fields)(cell))


def _training(cell: Mapping[str, Any]) -> Iterator[str]:
    rows = rows_of(cell, "whole")
    first = next(iter(peers(rows)), None)
    yield from _table(["", "tokens/s", "range", "to the best peer", "range", "memory", "MFU"], [
        [row["name"], _number(rate(row)), _range(row["rates"]["whole"]), *_beside(row, first, "whole"), _mib(row),
         _percent(utilisation(row, cell))] for row in rows])
    yield from _failures(cell)


def _decoding(cell: Mapping[str, Any]) -> Iterator[str]:
    rows = rows_of(cell, "whole")
    first = next(iter(peers(rows)), None)
    yield from _table(["", "threads", "tokens/s", "range", "to the best peer", "range", "without the prompt", "first token",
                       "memory", "of its speed"], [
        [row["name"], str(row["threads"] or "own choice"), _number(rate(row)), _range(row["rates"]["whole"]),
         *_beside(row, first, "whole"), _number(rate(row, "steady")), f"{1000 / rate(row, 'first'):,.1f} ms", _mib(row),
         _percent(utilisation(row, cell)) if row["cached"] else "no cache"] for row in rows])
    yield from _failures(cell)


def _overhead(cell: Mapping[str, Any]) -> Iterator[str]:
    tokens = cell["setting"]["size"]["batch_size"] * cell["setting"]["size"]["length"]
    yield from _table(["", "ms a step", "range", "memory"], [
        [row["name"], f"{1000 * tokens / rate(row):,.2f}", _range([1000 * tokens / value for value in row["rates"]["whole"]]),
         _mib(row)] for row in rows_of(cell, "whole")])
    yield from _failures(cell)


def _fields(cell: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(["", ""], [[name.replace("_", " "), f"{value:,.4g}"] for name, value in cell.items()
                                 if isinstance(value, (int, float))])


def _setting(cell: Mapping[str, Any]) -> Iterator[str]:
    """What a cell was measured with, in a few lines."""
    setting = cell.get("setting")
    if not setting:
        return
    texts = []
    if size := setting.get("size"):
        texts.append(f"{size['n_layers']} layers, d_model {size['d_model']}, {size['n_heads']} heads, vocabulary "
                     f"{size['vocab_size']:,}")
        texts.append(f"{setting['rows']} x {setting['prompt']} + {setting['new']} tokens, greedy" if "rows" in setting else
                     f"{size['batch_size']} x {size['length']} tokens")
        texts.append(f"{setting['precision'] if setting['precision'] != 32 else 'fp32'}")
        texts.append(f"{setting['threads']} threads" + (", per second of its CPU time" if setting["per_cpu_second"] else ""))
    texts.append(f"{setting['rounds']} rounds" + (f" of {setting['seconds']:g} s" if "seconds" in setting else ""))
    peak = machine_peak(cell) if "rows" in cell else None
    if peak is not None:
        texts.append(f"the machine reads {peak / 1e9:,.0f} GB/s" if "rows" in setting else
                     f"its matrix product {peak / 1e9:,.0f} GFLOP/s")
    others = [busy[1] for row in cell.get("rows", ()) for busy in row.get("cores", ()) if busy is not None]
    if others:
        texts.append(f"others had {sum(others) / len(others):.1f} cores")
    yield f"{'; '.join(texts)}."


def _machine(cell: Mapping[str, Any]) -> str:
    """What a cell was measured on."""
    setting = cell["setting"]
    gpu = f"{setting['gpu']}; " if setting.get("gpu") else ""
    return (f"{gpu}{setting['processor']} ({', '.join(setting['abilities'])}), {setting['cores']} cores; "
            f"{', '.join(f'{name} {version}' for name, version in setting['versions'].items())}.")


def _failures(cell: Mapping[str, Any]) -> Iterator[str]:
    failed = [row for row in cell["rows"] if "failed" in row]
    if failed:
        yield ""
    for row in failed:
        yield f"{row['name']} could not be measured: {row['failed']}"


def _beside(row: Mapping[str, Any], first: Mapping[str, Any] | None, figure: str) -> tuple[str, str]:
    if first is None:
        return "", ""
    ratio, lowest, highest = beside(row, first, figure)
    return f"{ratio:.2f}", f"{lowest:.2f} to {highest:.2f}"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A table of Markdown that can be read as text too: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    cells = [[row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
             for row in (head, *rows)]
    yield f"| {' | '.join(cells[0])} |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    yield from (f"| {' | '.join(row)} |" for row in cells[1:])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _range(values: list[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}"


def _mib(row: Mapping[str, Any]) -> str:
    return f"{row['peak_bytes'] / 2**20:,.0f} MiB"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def main(results: str, page: str) -> None:
    """Write the page and its pictures."""
    from .pictures import draw

    found, target = json.loads(Path(results).read_text(encoding="utf-8")), Path(page)
    kept = target.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
    target.write_text(f"{kept}\n\n{document(found, draw(found, target))}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
