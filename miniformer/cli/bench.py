"""`miniformer bench SPEC|RUN --against SPEC|RUN`: speed and memory of models, side by side on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.tables import line_width, table
from miniformer.kernel.errors import UserError
from miniformer.train.spec_file import model_of, read_spec, run_of

if TYPE_CHECKING:
    from miniformer.bench.contestant import Precision


@click.command("bench", cls=ResultCommand)
@click.argument("spec", type=click.Path())
@click.option("--against", multiple=True, type=click.Path(), metavar="SPEC", help="A model to compare with; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each model has its turn.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True,
              help="Length of a turn.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True,
              help="Rows of a training batch; decoding is measured with one text and with this many.")
@click.option("--length", type=click.IntRange(min=2),
              help="Tokens of a training row; in decoding, of prompt (a quarter of them) and text together.  "
                   "[default: SPEC's max_seq_len]")
@click.option("--precision", type=click.Choice(["32", "bf16"]),
              help="Numbers to compute with.  [default: in training as a run would choose, in decoding 32]")
@click.option("--only", type=click.Choice(["train", "decode"]), help="Measure training alone, or decoding alone.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(spec: str, against: tuple[str, ...], rounds: int, seconds: float, batch_size: int, length: int | None,
            precision: str | None, only: str | None, as_json: bool) -> None:
    """Measure speed and memory of models, side by side.

    Measures how fast each model trains and writes, and how much memory it takes. SPEC is what `miniformer inspect` takes: a run
    folder, a run.json, or a YAML or JSON file with a run's config or fields of a model. Weights are new and batches are made
    up, so no data is needed. Comparing a SPEC with itself shows how much figures vary by chance.
    """
    specs = [(path, read_spec(Path(path))) for path in (spec, *against)]

    runs = []
    for path, data in specs:
        try:
            runs.append((path, run_of(data)))
            length = length or model_of(data)[0].max_seq_len
        except UserError as error:
            raise type(error)(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from None

    from miniformer.bench.contest import compare
    from miniformer.bench.contestant import Setting
    from miniformer.train.specs import best_precision

    chosen: Precision | None = None if precision is None else "bf16" if precision == "bf16" else 32
    setting = Setting(batch_size, length or 1, chosen or best_precision(), chosen or 32)
    results = compare(runs, setting, rounds=rounds, seconds=seconds, only=only,
                      progress=lambda text: click.echo(text, err=True))
    if as_json:
        say(json.dumps(results, indent=2))
    else:
        _print(results)


def _print(results: Mapping[str, Any]) -> None:
    setting, contestants = results["setting"], results["contestants"]
    say(f"{setting['device']}, {setting['threads']} threads; medians of {setting['rounds']} rounds of "
               f"{setting['seconds']:g} s, lowest to highest")
    if any(contestant["train"] for contestant in contestants):
        say(f"\ntraining, {setting['batch_size']} x {setting['length']} tokens, {_named(setting['precision'])}; "
                   f"the machine's matrix product: {setting['gemm_flops'] / 1e9:,.0f} GFLOP/s")
        _table(contestants, [contestant["train"] for contestant in contestants])
        _explain_mfu(contestants)
    for size in sorted({entry["batch_size"] for contestant in contestants for entry in contestant["decode"]}):
        say(f"\ndecoding, {size} x {setting['prompt']} + {setting['length'] - setting['prompt']} tokens, greedy, "
                   f"{_named(setting['decode_precision'])}")
        _table(contestants, [next((entry for entry in contestant["decode"] if entry["batch_size"] == size), None)
                             for contestant in contestants])


def _explain_mfu(contestants: Sequence[Mapping[str, Any]]) -> None:
    """Say what the last column of the training table is, and why it can be above 100 %."""
    utilisations = [contestant["train"]["mfu"] for contestant in contestants if contestant["train"]]
    if any(value is not None for value in utilisations):
        click.echo("MFU: the operations of the model's own forward and backward passes, as a share of that product's rate")
    if any(value is not None and value > 1 for value in utilisations):
        click.echo("MFU above 100 % is no error: layers may multiply by a faster library than torch.mm, which measures that "
                   "product, and scores that a mask hides are counted (docs/performance.md)")


def _table(contestants: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any] | None]) -> None:
    """A row for each contestant, the first column to the left and the others to the right."""
    head = ["", "parameters", "tokens/s", "range", "ratio", "range", "memory"]
    if any(row and "mfu" in row for row in figures):
        head.append("MFU")
    rows = [head, *([contestant["name"], f"{contestant['parameters']:,}", *_cells(own)]
                    for contestant, own in zip(contestants, figures, strict=True))]
    say("\n".join(table(rows, line_width(), to_the_right=range(1, len(head)))))


def _cells(figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return ["does not write"]
    cells = [_rate(figures["tokens_per_second"]), f"{_rate(figures['lowest'])} to {_rate(figures['highest'])}",
             f"{figures['ratio']:.2f}", f"{figures['ratio_lowest']:.2f} to {figures['ratio_highest']:.2f}",
             f"{figures['peak_bytes'] / 2**20:,.0f} MiB"]
    if "mfu" in figures:
        cells.append("not counted" if figures["mfu"] is None else f"{100 * figures['mfu']:.0f} %")
    return cells


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _named(precision: Any) -> str:
    return f"fp{precision}" if isinstance(precision, int) else str(precision)
