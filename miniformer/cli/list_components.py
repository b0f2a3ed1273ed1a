"""`miniformer list-components`: the components that are installed, from metadata alone unless `--load` is given."""

from __future__ import annotations

import inspect
import json

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.own_commands import COMMANDS
from miniformer.cli.shared.plugin_commands import broken_commands
from miniformer.cli.shared.tables import line_width, table
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.registry import Availability, Entry, current_registry


@click.command("list-components", cls=ResultCommand)
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@click.option("--load", is_flag=True,
              help="Import every component, or those of KIND, to show what each is or why it is broken.")
@click.option("--matrix", is_flag=True,
              help="Show which attention goes with which position encoding, and the reason where it does not.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def command(context: click.Context, kind: str | None, load: bool, matrix: bool, as_json: bool) -> None:
    """List the components that are installed, and whether they can be used."""
    registry = current_registry()
    if matrix:
        _print_matrix()
        return
    if load:
        registry.load_all(kind)
    entries = [*registry.entries(kind), *(broken_commands(context, COMMANDS, load) if kind is None else [])]
    summaries = [_summary(entry) if load else "" for entry in entries]
    if as_json:
        say(json.dumps([{"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version,
                                "state": e.state.value, "reason": e.reason, **({"summary": summary} if load else {})}
                               for e, summary in zip(entries, summaries, strict=True)], indent=2))
        return
    rows = [("kind", "name", "provider", "state")]
    for entry, summary in zip(entries, summaries, strict=True):
        words = [entry.state.value, *filter(None, (" ".join(entry.reason.split()), summary))]
        rows.append((entry.kind, entry.name, entry.provider, ": ".join(words)))
    say("\n".join(table(rows, line_width(), wrapped=3)))
    if broken := sum(e.state is not Availability.AVAILABLE for e in entries):
        say(f"\n{broken} of {len(entries)} cannot be used as they are.")


def _summary(entry: Entry) -> str:
    """The first line of a component's docstring, where it can be used."""
    if entry.state not in (Availability.AVAILABLE, Availability.AMBIGUOUS):
        return ""
    doc = current_registry().load(entry.kind, entry.qualified).__doc__
    return inspect.cleandoc(doc).partition("\n")[0] if doc and isinstance(doc, str) else "(no description)"


def _print_matrix() -> None:
    """A grid of attention and position, with E where they make an encoder and D a decoder; then every refused pair."""
    from miniformer.config.matrix import DIRECTIONS, names, refusal, refused_pairs

    positions = names("position")
    rows = [("attention", *positions)]
    for attention in names("attention"):
        rows.append((attention, *("".join("-" if refusal(direction, attention=attention, position=position)
                                          else direction[0].upper() for direction in DIRECTIONS) for position in positions)))
    say("\n".join(table(rows, line_width())))
    say("\nE: encoder, and encoder-decoder; D: decoder; -: refused. " + f"Any ffn ({', '.join(names('ffn'))}) and norm "
               f"({', '.join(names('norm'))}) goes with them, but for:")
    reasons: dict[str, list[str]] = {}
    for pair, why in refused_pairs():
        reasons.setdefault(" ".join(why.split()), []).append(pair)
    for why, pairs in reasons.items():
        say(f"  {why}\n" + "\n".join(f"    {pair}" for pair in pairs))
    if not reasons:
        say("  nothing")
