"""What is wanted of speed and memory, as data, and whether the figures of cells reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .figures import beside, named, peers, rate, rows_of, utilisation

Results = Mapping[str, Mapping[str, Any]]
"""Cells by part and name."""


class Verdict(NamedTuple):
    """A goal beside what was measured.

    Attributes:
        ours, theirs: as text, with what it is of.
        value: what has a bound.
        met: whether it keeps to it; None: it was not measured.
    """

    ours: str
    theirs: str
    value: float | None
    met: bool | None


UNMEASURED = Verdict("not measured", "", None, None)


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one number of a cell.

    Attributes:
        what: the row.
        part, cell: where it is measured.
        judge: gives ours, theirs and the number of a cell; None: not in it.
        least, most: its bounds.
        unit: of the number.
    """

    what: str
    part: str
    cell: str
    judge: Callable[[Mapping[str, Any]], tuple[str, str, float] | None]
    least: float | None = None
    most: float | None = None
    unit: str = ""

    def verdict(self, results: Results) -> Verdict:
        cell = results.get(self.part, {}).get(self.cell)
        found = None if cell is None else self.judge(cell)
        if found is None:
            return UNMEASURED
        ours, theirs, value = found
        met = (self.least is None or value >= self.least) and (self.most is None or value <= self.most)
        return Verdict(ours, theirs, value, met)

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"at least {self.least:g}{self.unit}" if self.least is not None else f"at most {self.most:g}{self.unit}"

    def missed_by(self, value: float) -> str:
        """How far a number is from its bound."""
        bound = self.least if self.least is not None else self.most
        assert bound is not None
        return f"{100 * abs(value / bound - 1):.0f} %" if bound else f"{value:g}{self.unit}"


def busy(names: Sequence[str]) -> Callable[..., Any]:
    """How much of the machine's product our best row uses, in percent."""
    def judge(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
        rows = named(rows_of(cell, "whole"), names)
        used = utilisation(rows[0], cell) if rows else None
        return None if used is None else (rows[0]["name"], "the machine's product", 100 * used)
    return judge


def faster(figure: str, ours: Sequence[str] | None, theirs: Sequence[str] | None, unit: str = "") -> Callable[..., Any]:
    """The ratio of our best row to their best one; None: of all."""
    def judge(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
        rows = rows_of(cell, figure)
        own = [row for row in rows if row["ours"]] if ours is None else named(rows, ours)
        other = peers(rows) if theirs is None else named(rows, theirs)
        if not own or not other:
            return None
        return _told(own[0], figure), _told(other[0], figure), beside(own[0], other[0], figure).ratio
    return judge


def _told(row: Mapping[str, Any], figure: str) -> str:
    value = rate(row, figure)
    return f"{row['name']} {1000 / value:,.1f} ms" if figure == "first" else f"{row['name']} {value:,.0f}"


def smaller(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
    """Our smallest peak of memory over their smallest one."""
    rows = rows_of(cell, "whole")
    own, other = [row for row in rows if row["ours"]], peers(rows)
    if not own or not other:
        return None
    mine, best = (min(some, key=lambda row: row["peak_bytes"]) for some in (own, other))
    texts = [f"{row['name']} {row['peak_bytes'] / 2**20:,.0f} MiB" for row in (mine, best)]
    return texts[0], texts[1], mine["peak_bytes"] / best["peak_bytes"]


def bandwidth(names: Sequence[str]) -> Callable[..., Any]:
    """How much of the memory's speed our best row uses, in percent."""
    def judge(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
        found = [(used, row["name"]) for row in named(rows_of(cell, "steady"), names)
                 if (used := utilisation(row, cell)) is not None]
        return None if not found else (max(found)[1], "the memory", 100 * max(found)[0])
    return judge


def loop(percent: bool) -> Callable[..., Any]:
    """What Lightning's loop adds to a step: milliseconds, or percent of the step."""
    def judge(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
        rows = {row["name"]: row for row in rows_of(cell, "whole")}
        if len(rows) < 2:
            return None
        tokens = cell["setting"]["size"]["batch_size"] * cell["setting"]["size"]["length"]
        inside, plain = (1000 * tokens / rate(rows[name]) for name in ("trainer", "raw loop"))
        added = 1 / beside(rows["trainer"], rows["raw loop"]).ratio - 1
        return f"{inside:,.2f} ms", f"{plain:,.2f} ms", 100 * added if percent else added * plain
    return judge


def field(name: str, unit: str = "", over: str | None = None) -> Callable[..., Any]:
    """A number of a cell, or its ratio to another one."""
    def judge(cell: Mapping[str, Any]) -> tuple[str, str, float] | None:
        if cell.get(name) is None or (over is not None and not cell.get(over)):
            return None
        value = cell[name]
        return (f"{value:,.3g}{unit}", "", value) if over is None else (
            f"{value:,.3g}{unit}", f"{cell[over]:,.3g}{unit}", value / cell[over])
    return judge


EAGER, COMPILED = ("miniformer-gpt2", "miniformer-llama"), ("miniformer-gpt2-compiled", "miniformer-llama-compiled")
LITGPT, HF = ("litgpt-neox", "litgpt-llama"), ("hf-gpt2", "hf-llama", "hf-gpt2-static", "hf-llama-static")

TO_THE_BEST_PEER = {"S fp32": 1.05, "S bf16": 1.15, "M fp32": 1.0, "M bf16": 1.1, "S bf16 compiled": 1.15}
TRAINING = [goal for cell, least in TO_THE_BEST_PEER.items() for goal in (
    Goal(f"training {cell}: the best peer", "train", cell, faster("whole", EAGER, None), least=least),
    Goal(f"training {cell}: Llama's parts, transformers' Llama", "train", cell,
         faster("whole", ("miniformer-llama",), ("hf-llama",)), least=0.95),
    Goal(f"training {cell}: a plugin's part, the same code inline", "train", cell,
         faster("whole", ("miniformer-plugin",), ("nanogpt",)), least=0.95),
    Goal(f"training {cell}: peak memory, every peer", "train", cell, smaller, most=1.0))]
OVERHEAD = [Goal("Lightning's loop, S: the same step in a plain loop", "overhead", "S", loop(percent=True), most=2, unit=" %"),
            Goal("Lightning's loop, XS: the same step in a plain loop", "overhead", "XS", loop(percent=False), most=0.6,
                 unit=" ms")]
DECODING = [goal for size in ("S", "M") for rows in (1, 8) for cell in (f"{size} x {rows}",) for goal in (
    Goal(f"decoding {cell}: litgpt", "decode", cell, faster("whole", EAGER, LITGPT), least=1.3),
    Goal(f"decoding {cell}: transformers", "decode", cell, faster("whole", EAGER, HF), least=1.5),
    Goal(f"decoding {cell}, compiled: ONNX Runtime", "decode", cell, faster("whole", COMPILED, ("onnxruntime",)), least=1.0)
    if size == "S" else
    Goal(f"decoding {cell}, compiled: what memory lets through", "decode", cell, bandwidth(COMPILED), least=75, unit=" %"),
    Goal(f"decoding {cell}: first token, the best peer", "decode", cell, faster("first", None, None), least=1.0))]
DATA = [Goal("tokens of texts: a bare `encode_batch`", "data", "text",
             field("miniformer, file to packed rows, ratio to encode_batch"), least=0.95),
        Goal("tokens of texts that were cached", "data", "text", field("cached corpus, opened, ms", " ms"), most=10,
             unit=" ms"),
        Goal("padding, language modelling", "data", "text", field("padding, packed rows"), most=0.01),
        Goal("padding, rows of like lengths", "data", "text", field("padding, batches of 16, at most any tokens"), most=0.05)]
STARTUP = [Goal("start of `miniformer train` without its data: importing torch and Lightning", "startup", "train",
                field("startup", " s", "imports"), most=1.2),
           Goal("start of `miniformer train`: first output", "startup", "train", field("output", " s"), most=0.3, unit=" s")]
GOALS: Sequence[Goal] = (*TRAINING, *OVERHEAD, *DECODING, *DATA, *STARTUP)
GPU_CELLS = [f"{size} bf16{way}" for size in ("124M", "350M") for way in ("", " compiled")]
GPU_GOALS: Sequence[Goal] = [goal for cell in GPU_CELLS for goal in (
    Goal(f"training {cell}: plain torch", "train", cell, faster("whole", EAGER, ("nanogpt",)), least=1.0),
    Goal(f"training {cell}: model FLOPs utilisation", "train", cell, busy(EAGER), least=50, unit=" %"))]
"""What is wanted where all run on a GPU."""
