"""`miniformer describe [KIND] NAME`: a component's description, its provider, and the options that its constructor takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.tables import labelled, line_width
from miniformer.kernel.errors import UnknownComponent
from miniformer.kernel.kinds import KINDS, check_kind
from miniformer.kernel.registry import Entry, canonical, current_registry


@click.command("describe", cls=ResultCommand)
@click.argument("what", nargs=-1, required=True, metavar="[KIND] NAME")
@click.option("--kind", type=click.Choice(list(KINDS)), help="The kind, as KIND.")
@click.option("--json", "as_json", is_flag=True, help="Write the JSON schema of the options.")
def command(what: Sequence[str], kind: str | None, as_json: bool) -> None:
    """Show what a component is and which options it takes.

    Without KIND, the components of all kinds that have this NAME are shown.
    """
    if len(what) > 2 or (len(what) == 2 and kind is not None):
        raise click.UsageError(f"expected [KIND] NAME; found {' '.join(what)}{f' and --kind {kind}' if kind else ''}")
    if len(what) == 2:
        kind = check_kind(what[0])
    entries = _matches(what[-1], kind)

    from miniformer.kernel.options import OptionsSchema, options_of

    for number, entry in enumerate(entries):
        cls = current_registry().load(entry.kind, entry.qualified)
        schema = options_of(cls).model_json_schema(schema_generator=OptionsSchema)
        if as_json:
            say(json.dumps(schema, indent=2))
            continue
        say(("\n" if number else "") + f"{entry.kind} {entry.name}  ({entry.provider}, {entry.target})\n")
        say(inspect.cleandoc(cls.__doc__ or "(no description)"))
        say("\nsizes, from the model: " + (", ".join(KINDS[entry.kind].sizes) or "none"))
        say("options:" if schema.get("properties") else "options: none")
        for option, facts in schema.get("properties", {}).items():
            default = "required" if option in schema.get("required", ()) else f"default {json.dumps(facts.get('default'))}"
            say("\n".join(labelled(f"  {option}: ", f"{_type(facts)}, {default}", line_width(), len(option) + 4)))


def _matches(name: str, kind: str | None) -> list[Entry]:
    registry = current_registry()
    if kind is not None:
        return [registry.find(kind, name)]
    wanted = canonical(name)
    kinds = dict.fromkeys(e.kind for e in registry.entries() if e.kind in KINDS and wanted in (e.name, e.qualified))
    if not kinds:
        raise UnknownComponent(registry.unknown_of_any_kind(name))
    return [registry.find(kind, name) for kind in kinds]


def _type(facts: dict[str, object]) -> str:
    """A JSON schema as a few words: type and bounds."""
    if "kind" in facts:
        return f"component of kind {facts['kind']}"
    if isinstance(facts.get("anyOf"), list):
        return " or ".join(_type(choice) for choice in facts["anyOf"])  # type: ignore[attr-defined]
    if "enum" in facts:
        return "one of " + ", ".join(map(json.dumps, facts["enum"]))  # type: ignore[call-overload]
    words = str(facts.get("type", "component" if "$ref" in facts else "any"))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {facts[key]:g}" for key, sign in bounds.items() if key in facts]
    return " ".join([words, " and ".join(limits)]).strip()
