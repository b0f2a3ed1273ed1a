"""`miniformer check [KIND] NAME`: whether a component keeps the promises of its kind, one row for each promise."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.settings import apply, split_setting
from miniformer.cli.shared.tables import line_width, table
from miniformer.cli.shared.text_input import SEED
from miniformer.kernel.errors import UserError
from miniformer.kernel.kinds import KINDS, check_kind
from miniformer.kernel.registry import Availability, Entry, canonical, current_registry

if TYPE_CHECKING:
    from miniformer.contracts.kit.check import Suite
    from miniformer.contracts.kit.report import Report, Result

MARKS = {"held": ("✓", "green"), "skipped": ("-", "bright_black"), "fails as declared": ("x", "yellow"),
         "note": ("!", "yellow"), "failed": ("✗", "red")}


@dataclass(frozen=True)
class Target:
    """What is checked: a registered component, or a class that is written `module:Class`.

    Attributes:
        kind: its kind; None: that of the class, which is not imported yet.
        name: its name as it is shown.
        provider: where it is from, as it is shown.
        target: what `ComponentUnderTest.of` takes.
    """

    kind: str | None
    name: str
    provider: str
    target: str

    @classmethod
    def of(cls, entry: Entry) -> Target:
        """A registered component."""
        return cls(entry.kind, entry.name, entry.provider, entry.qualified)


@click.command("check", cls=ResultCommand)
@click.argument("what", nargs=-1, metavar="[KIND] [NAME]")
@click.option("--all", "everything", is_flag=True, help="Check every component that can be loaded, or every one of KIND.")
@click.option("--only", multiple=True, metavar="PROPERTY", help="Check this promise and no other; may be repeated.")
@click.option("--list", "lists", is_flag=True, help="List the promises, of every kind or of KIND, and check nothing.")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE",
              help="Fix an option that would be drawn at random; may be repeated.")
@click.option("--thorough", is_flag=True, help="Many more examples, and torch.compile and torch.export.")
@click.option("--examples", type=click.IntRange(min=1),
              help="Examples for each promise.  [default: 30, with --thorough 400]")
@click.option("--no-shrink", is_flag=True, help="Show the first example that fails, and do not look for the smallest: faster.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the examples.")
@click.option("--data", type=click.Path(path_type=Path), help="JSONL file with records, for a task that embeds none.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(what: Sequence[str], everything: bool, only: Sequence[str], lists: bool, settings: Sequence[str], thorough: bool,
            examples: int | None, no_shrink: bool, seed: int, data: Path | None, as_json: bool) -> None:
    """Check that a component keeps the promises of its kind.

    NAME is a component; KIND is its kind, needed where several kinds have a component of that name. NAME may also be a class
    that is not registered, as module:Class, in this folder or installed; its kind is found from what it subclasses. Ends with
    exit code 1 if a promise is broken.
    """
    from miniformer.contracts.kit.catalogue import chosen, listed

    if lists:
        _list(_kinds_of(what), as_json)
        return
    targets = _targets(what, everything)
    kinds = [target.kind for target in targets if target.kind is not None]
    only = chosen(only, kinds if len(kinds) == len(targets) else KINDS)
    targets = [target for target in targets if not only or target.kind is None
               or any(prop.name in only for prop in listed(target.kind))]
    options = _options(settings)
    if data is not None:
        from miniformer.data.jsonl import check_file

        check_file(data)

    from miniformer.contracts.kit.check import FAST, THOROUGH, Suite, report_of
    from miniformer.contracts.kit.component_under_test import ComponentUnderTest

    if options and len(targets) > 1:
        raise UserError("--set goes with one component")
    reports: list[Report] = []
    for target in targets:
        subject = ComponentUnderTest.of(target.kind, target.target, None if data is None else str(data), options)
        suite = Suite(subject, examples or (THOROUGH if thorough else FAST), thorough, seed, not no_shrink,
                      chosen(only, [subject.kind]) if len(targets) == 1 else only)
        if not as_json:
            say(click.style(f"{subject.kind} {target.name} ({target.provider})", bold=True))
        report = report_of(subject, _results(suite, show=not as_json))
        reports.append(report)
        if not as_json:
            _summary(report)
    if as_json:
        data_of_reports = [report.to_dict() for report in reports]
        say(json.dumps(data_of_reports if everything or len(reports) != 1 else data_of_reports[0], indent=2))
    elif len(reports) > 1:
        broken = [f"{report.kind} {report.component}" for report in reports if not report.ok]
        say(f"{len(reports)} components: " + (f"{len(broken)} break promises: {', '.join(broken)}" if broken else
                                                     "all keep their promises"))
    if not all(report.ok for report in reports):
        raise click.exceptions.Exit(1)


def _list(kinds: Sequence[str], as_json: bool) -> None:
    """Show the properties of kinds with their promises. Nothing is imported for it but their source."""
    from miniformer.contracts.kit.catalogue import listed

    if as_json:
        say(json.dumps([{"kind": kind, "property": prop.name, "promise": prop.promise, "consequence": prop.consequence,
                         "thorough": prop.thorough, "note": prop.note} for kind in kinds for prop in listed(kind)], indent=2))
        return
    for kind in kinds:
        say(click.style(kind, bold=True))
        rows = [(f"  {prop.name}", " ".join([prop.promise, *(["Checked with --thorough."] if prop.thorough else [])]))
                for prop in listed(kind)]
        say("\n".join(table(rows, line_width(), wrapped=1, headed=False)) + "\n")


def _kinds_of(what: Sequence[str]) -> list[str]:
    """The kinds whose properties are listed: that of KIND, or of a component by its name; without either, all."""
    if not what:
        return list(KINDS)
    if what[0] in KINDS or len(what) > 1:
        return [check_kind(what[0])]
    return [_entry_named(what[0]).kind]


def _results(suite: Suite, show: bool) -> list[Result]:
    """Check every property; each row is shown as soon as it is known."""
    width = max(map(len, suite.names), default=0)
    results = []
    for result in suite.results():
        results.append(result)
        if show:
            _row(result, width)
    return results


def _row(result: Result, width: int) -> None:
    mark, colour = MARKS[result.outcome.value]
    facts = f"{result.examples:4} {'example ' if result.examples == 1 else 'examples'} {result.seconds:6.1f} s"
    facts = "; ".join(filter(None, [facts, result.not_looked_at()]))
    cells = (click.style(mark, colour), result.property.ljust(width), result.outcome.value.ljust(8),
             facts if result.examples else result.why)
    say("  " + " ".join(cells).rstrip())


def _summary(report: Report) -> None:
    counts = {outcome: sum(result.outcome.value == outcome for result in report.results) for outcome in MARKS}
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    say(f"  {outcomes}; {sum(result.seconds for result in report.results):.1f} s\n")
    for note in report.notes:
        say(f"  note: {note}")
    for result in report.results:
        if result.outcome.value in ("fails as declared", "note"):
            say(f"  {result.property}: {result.why}")
    if not report.ok:
        say(report.explain() + "\n")


def _targets(what: Sequence[str], everything: bool) -> list[Target]:
    """What KIND and NAME mean. Names are looked up before anything is imported."""
    from miniformer.contracts.kit.class_target import names_a_class

    if what and ":" in what[-1] and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the class may be in a file of this folder, which must hide no library's module
    if not everything and len(what) in (1, 2) and names_a_class(what[-1]):
        module, _, name = what[-1].partition(":")
        return [Target(check_kind(what[0]) if len(what) == 2 else None, name, module, what[-1])]
    return [Target.of(entry) for entry in _entries(what, everything)]


def _entries(what: Sequence[str], everything: bool) -> list[Entry]:
    """The registered components that KIND and NAME mean."""
    registry = current_registry()
    if len(what) > 2:
        raise click.UsageError(f"expected [KIND] NAME; found {' '.join(what)}")
    if len(what) == 2:
        kind, name = what
        return [registry.find(check_kind(kind), name)]
    kind_only = what[0] if what and (everything or what[0] in KINDS) else None
    if everything or kind_only:
        if kind_only is not None:
            check_kind(kind_only)
        from miniformer.contracts.kit.suite import usable

        return usable(kind_only)
    if not what:
        raise click.UsageError("which component? Give [KIND] NAME, or --all; `miniformer list-components` lists them")
    return [_entry_named(what[0])]


def _entry_named(text: str) -> Entry:
    """The only component that has a name, of whichever kind.

    Raises:
        UserError: components of several kinds have the name, or none has it.
    """
    registry, name = current_registry(), canonical(text)
    usable = [entry for entry in registry.entries() if entry.kind in KINDS and entry.state is not Availability.BLOCKED]
    kinds = list(dict.fromkeys(entry.kind for entry in usable if name in (entry.name, entry.qualified)))
    if len(kinds) > 1:
        choices = " or ".join(f"{kind} {name}" for kind in kinds)
        raise UserError(f"{name!r} is the name of {len(kinds)} components; say {choices}")
    if not kinds:
        raise UserError(registry.unknown_of_any_kind(text))
    return registry.find(kinds[0], text)


def _options(settings: Sequence[str]) -> dict[str, Any]:
    """The options that `--set` fixes, as data."""
    component: dict[str, Any] = {"options": {}}
    for setting in settings:
        path, text = split_setting(setting, "OPTION=VALUE, such as window=4")
        apply(component, ("options", *path.replace("-", "_").split(".")), text, f"--set {path}")
    options: dict[str, Any] = component["options"]
    return options
