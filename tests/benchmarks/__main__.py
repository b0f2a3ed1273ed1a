"""`python -m tests.benchmarks`: measure miniformer beside its peers on this machine; see docs/performance.md."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from miniformer.checkpoint.atomic import write_json

PARTS = ("train", "decode", "overhead", "data", "startup")
PRECISIONS = ("32", "bf16")
NAMES = ("tiny", "XS", "S", "M", "124M", "350M")
Cells = Iterator[tuple[str, str, Callable[[], Any]]]
"""Part and name of each cell, and what measures it."""


def _names(context: Any, option: Any, value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _among(known: tuple[str, ...]) -> Any:
    def check(context: Any, option: Any, value: str) -> list[str]:
        names = _names(context, option, value)
        if unknown := [name for name in names if name not in known]:
            raise click.BadParameter(f"{', '.join(unknown)}; expected some of {','.join(known)}")
        return names
    return check


@click.command("tests.benchmarks")
@click.option("--only", default=",".join(PARTS), callback=_among(PARTS), help="Parts to measure.", show_default=True)
@click.option("--sizes", default="S,M", callback=_among(NAMES), show_default=True, help="Of models.")
@click.option("--precisions", default="32,bf16", callback=_among(PRECISIONS), show_default=True, help="Of training.")
@click.option("--compile", "compiled", is_flag=True, help="Train compiled, instead of eagerly.")
@click.option("--contestants", default="", callback=_names, help="Only those; a name stands for all that begin with it.")
@click.option("--batches", default="1,8", callback=_names, show_default=True, help="Texts that are decoded at once.")
@click.option("--new", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens that are decoded.")
@click.option("--threads", type=click.IntRange(min=1), help="Of everyone.  [default: all; peers decode with 1 and all]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, help="Of a turn.")
@click.option("--megabytes", type=click.FloatRange(min=0, min_open=True), default=16.0, show_default=True, help="Of text.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file that results are put into; others in it are kept.")
@click.option("--quick", is_flag=True, help="Everyone at a tiny size for a moment: does it run?")
def main(only: list[str], sizes: list[str], precisions: list[str], compiled: bool, contestants: list[str], batches: list[str],
         new: int, threads: int | None, rounds: int, seconds: float, megabytes: float, out: Path | None, quick: bool) -> None:
    """Measure miniformer beside its peers. Those that are not installed are left out, with a line that says so."""
    warnings.simplefilter("ignore")
    from miniformer.train.specs import best_precision

    from .contest import Effort
    from .contestants import chosen

    said = partial(click.echo, err=True)
    if quick:
        precision = str(best_precision())  # where bf16 is emulated, the machine's matrix product would take minutes
        sizes, precisions, batches, new, rounds, seconds, megabytes = ["tiny"], [precision], ["2"], 8, 1, 0.01, 1.2
    there = []
    for one in chosen(contestants):
        if one.missing:
            said(f"{one.name}: left out, {'; '.join(one.missing)}")
        else:
            there.append(one)
    if not there:
        raise click.UsageError("none of the contestants is there")
    preloaded = ("tests.benchmarks.contestants", *sorted({name for one in there for name in one.packages})) if quick else ()
    effort = Effort(rounds, seconds, threads, new, tuple(map(int, batches)), preloaded, said)
    found: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    failed = False
    for part, name, measure in _cells(only, sizes, precisions, compiled, there, effort, megabytes, quick):
        said(f"{part} {name}")
        cell = measure()
        found.setdefault(part, {})[name] = cell
        failed |= any("failed" in row for row in cell.get("rows", ()))
        if out:
            write_json(out, found)
        _print(part, name, cell)
    sys.exit(1 if failed else 0)


def _cells(only: list[str], sizes: list[str], precisions: list[str], compiled: bool, there: list[Any], effort: Any,
           megabytes: float, quick: bool) -> Cells:
    """What is to be measured, in order."""
    from . import contest, data, startup
    from .sizes import SIZES

    precise = {"32": 32, "bf16": "bf16"}
    for name in sizes if "train" in only else ():
        for precision in precisions:
            label = f"{name} {'fp32' if precision == '32' else precision}{' compiled' if compiled else ''}"
            yield "train", label, partial(contest.train, SIZES[name], precise[precision], compiled, there, effort)
    for name in (sizes if quick else sorted({"XS", *sizes} & {"S", "XS"})) if "overhead" in only else ():
        yield "overhead", name, partial(contest.overhead, SIZES[name], effort)
    for name in sizes if "decode" in only else ():
        for rows in effort.batches:
            yield "decode", f"{name} x {rows}", partial(contest.decode, SIZES[name], rows, there, effort)
    if "data" in only:
        yield "data", "text", partial(data.measure, megabytes, effort.rounds)
    if "startup" in only:
        yield "startup", "train", partial(startup.measure, effort.rounds, small=quick)


def _print(part: str, name: str, cell: Any) -> None:
    """What was found, for who waits."""
    from .report import tables

    click.echo(f"\n{part} {name}")
    for line in tables(part, cell):
        click.echo(line)


if __name__ == "__main__":
    main()
