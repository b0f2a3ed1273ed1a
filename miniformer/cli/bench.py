"""`miniformer bench SPEC|RUN --against SPEC|RUN`: speed and memory of models, side by side on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.train.spec_file import read_spec

if TYPE_CHECKING:
    from miniformer.bench.contestant import Precision


@click.command("bench")
@click.argument("spec", type=click.Path())
@click.option("--against", multiple=True, type=click.Path(), metavar="SPEC", help="What to compare with; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Times that each is measured, in turn.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True,
              help="How long, each time.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True,
              help="Rows of a training batch; texts that are written at once, beside one alone.")
@click.option("--length", type=click.IntRange(min=2),
              help="Tokens of a row, and of a text with its prompt, which is a quarter.  [default: SPEC's max_seq_len]")
@click.option("--precision", type=click.Choice(["32", "bf16"]),
              help="[default: in training as a run would choose, in decoding 32]")
@click.option("--only", type=click.Choice(["train", "decode"]), help="Measure one of the two.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(spec: str, against: tuple[str, ...], rounds: int, seconds: float, batch_size: int, length: int | None,
            precision: str | None, only: str | None, as_json: bool) -> None:
    """Measure how fast a model trains and writes, and how much memory it takes, beside others.

    SPEC is what `miniformer inspect` takes: a run folder, a run.json, or a YAML or JSON file with a run's config or fields of
    a model. Weights are new and batches are made up, so no data is needed. The same SPEC twice shows how much the machine wavers.
    """
    specs = [(path, read_spec(Path(path))) for path in (spec, *against)]

    from miniformer.bench.contest import compare
    from miniformer.bench.contestant import Setting
    from miniformer.kernel.errors import UserError
    from miniformer.train.spec_file import model_of, run_of
    from miniformer.train.trainer import best_precision

    runs = []
    for path, data in specs:
        try:
            runs.append((path, run_of(data)))
            length = length or model_of(data)[0].max_seq_len
        except UserError as error:
            raise type(error)(f"{path}: {error}") from None
    chosen: Precision | None = None if precision is None else "bf16" if precision == "bf16" else 32
    setting = Setting(batch_size, length or 1, chosen or best_precision(), chosen or 32)
    found = compare(runs, setting, rounds=rounds, seconds=seconds, only=only, told=lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    setting, contestants = found["setting"], found["contestants"]
    click.echo(f"{setting['device']}, {setting['threads']} threads; medians of {setting['rounds']} rounds of "
               f"{setting['seconds']:g} s, lowest to highest")
    rows: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {}
    if any(one["train"] for one in contestants):
        shape = f"{setting['batch_size']} x {setting['length']} tokens"
        rows[f"training, {shape}, {_named(setting['precision'])}; matrix product {setting['gemm_flops'] / 1e9:,.0f} GFLOP/s"] = (
            "mfu", lambda one: one["train"])
    for rows_at_once in sorted({entry["batch_size"] for one in contestants for entry in one["decode"]}):
        title = (f"decoding, {rows_at_once} x {setting['prompt']} + {setting['length'] - setting['prompt']} tokens, greedy, "
                 f"{_named(setting['decode_precision'])}")
        rows[title] = ("", lambda one, size=rows_at_once: next((e for e in one["decode"] if e["batch_size"] == size), None))
    for title, (extra, get) in rows.items():
        click.echo(f"\n{title}")
        _table([["", "parameters", "tokens/s", "range", "ratio", "range", "memory", *([extra.upper()] if extra else [])],
                *([one["name"], f"{one['parameters']:,}", *_cells(get(one), extra)] for one in contestants)])


def _cells(figures: Mapping[str, Any] | None, extra: str) -> list[str]:
    if figures is None:
        return ["does not write"]
    cells = [_rate(figures["tokens_per_second"]), f"{_rate(figures['lowest'])} to {_rate(figures['highest'])}",
             f"{figures['ratio']:.2f}", f"{figures['ratio_lowest']:.2f} to {figures['ratio_highest']:.2f}",
             f"{figures['peak_bytes'] / 2**20:,.0f} MiB"]
    if extra:
        cells.append("not counted" if figures[extra] is None else f"{100 * figures[extra]:.0f} %")
    return cells


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns two spaces apart, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))]
        click.echo("  ".join(cells).rstrip())


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _named(precision: Any) -> str:
    return f"fp{precision}" if isinstance(precision, int) else str(precision)
