"""`miniformer list-components`: what is installed, from metadata alone unless `--load` is given."""

from __future__ import annotations

import json

import click

from miniformer.kernel.kinds import KINDS
from miniformer.kernel.registry import State, current_registry


@click.command("list-components")
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@click.option("--load", is_flag=True, help="Import every component and say which are broken, and why.")
@click.option("--matrix", is_flag=True, help="Show which attention goes with which position encoding, and why not.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(kind: str | None, load: bool, matrix: bool, as_json: bool) -> None:
    """List components: kind, name, provider and version, state."""
    registry = current_registry()
    if matrix:
        _print_matrix()
        return
    if load:
        registry.load_all()
    entries = registry.entries(kind)
    if as_json:
        click.echo(json.dumps([{"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version,
                                "state": e.state.value, "reason": e.reason} for e in entries], indent=2))
        return
    rows = [("kind", "name", "provider", "state"),
            *((e.kind, e.name, e.provider, e.state.value + (f": {_line(e.reason)}" if e.reason else "")) for e in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    if broken := sum(e.state is not State.AVAILABLE for e in entries):
        click.echo(f"\n{broken} of {len(entries)} cannot be used as they are.")


def _print_matrix() -> None:
    """A grid of attention and position, E where they make an encoder and D a decoder; then every refused pair."""
    from miniformer.config.matrix import DIRECTIONS, names, refusal, refused_pairs

    positions = names("position")
    rows = [("attention", *positions)]
    for attention in names("attention"):
        rows.append((attention, *("".join("-" if refusal(direction, attention=attention, position=position)
                                          else direction[0].upper() for direction in DIRECTIONS) for position in positions)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("\nE: encoder, and encoder-decoder; D: decoder; -: refused. " + f"Any ffn ({', '.join(names('ffn'))}) and norm "
               f"({', '.join(names('norm'))}) goes with them, but for:")
    reasons: dict[str, list[str]] = {}
    for pair, why in refused_pairs():
        reasons.setdefault(_line(why), []).append(pair)
    for why, pairs in reasons.items():
        click.echo(f"  {why}\n" + "\n".join(f"    {pair}" for pair in pairs))
    if not reasons:
        click.echo("  nothing")


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "..."
