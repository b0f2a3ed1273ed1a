"""`miniformer check [KIND] NAME`: whether a component keeps the promises of its kind, one row for each promise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.settings import apply, split_setting
from miniformer.cli.shared.text_input import SEED
from miniformer.kernel.errors import UserError
from miniformer.kernel.kinds import KINDS, check_kind
from miniformer.kernel.registry import Availability, Entry, canonical, current_registry

if TYPE_CHECKING:
    from miniformer.contracts.kit.check import Suite
    from miniformer.contracts.kit.report import Report, Result

MARKS = {"held": ("✓", "green"), "skipped": ("-", "bright_black"), "fails as declared": ("x", "yellow"),
         "note": ("!", "yellow"), "failed": ("✗", "red")}


@click.command("check", cls=ResultCommand)
@click.argument("what", nargs=-1, metavar="[KIND] [NAME]")
@click.option("--all", "everything", is_flag=True, help="Check every component that can be loaded, or every one of KIND.")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE",
              help="Fix an option that would be drawn at random; may be repeated.")
@click.option("--thorough", is_flag=True, help="Many more examples, and torch.compile and torch.export.")
@click.option("--examples", type=click.IntRange(min=1),
              help="Examples for each promise.  [default: 30, with --thorough 400]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the examples.")
@click.option("--data", type=click.Path(path_type=Path), help="JSONL file with records, for a task that embeds none.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(what: Sequence[str], everything: bool, settings: Sequence[str], thorough: bool, examples: int | None, seed: int,
            data: Path | None, as_json: bool) -> None:
    """Check that a component keeps the promises of its kind.

    NAME is a component; KIND is its kind, needed where several kinds have a component of that name. Ends with exit code 1 if a
    promise is broken.
    """
    entries = _entries(what, everything)
    options = _options(settings)
    if data is not None:
        from miniformer.data.jsonl import check_file

        check_file(data)

    from miniformer.contracts.kit.check import FAST, THOROUGH, Suite
    from miniformer.contracts.kit.component_under_test import ComponentUnderTest
    from miniformer.contracts.kit.report import Report

    if options and len(entries) > 1:
        raise UserError("--set goes with one component")
    reports: list[Report] = []
    for entry in entries:
        subject = ComponentUnderTest.of(entry.kind, {"name": entry.qualified, **options}, None if data is None else str(data))
        suite = Suite(subject, examples or (THOROUGH if thorough else FAST), thorough, seed)
        if not as_json:
            say(click.style(f"{entry.kind} {entry.name} ({entry.provider})", bold=True))
        report = Report(entry.kind, subject.name, _results(suite, show=not as_json))
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
    cells = (click.style(mark, colour), result.property.ljust(width), result.outcome.value.ljust(8),
             facts if result.examples else result.why)
    say("  " + " ".join(cells).rstrip())


def _summary(report: Report) -> None:
    counts = {outcome: sum(result.outcome.value == outcome for result in report.results) for outcome in MARKS}
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    say(f"  {outcomes}; {sum(result.seconds for result in report.results):.1f} s\n")
    for result in report.results:
        if result.outcome.value in ("fails as declared", "note"):
            say(f"  {result.property}: {result.why}")
    if not report.ok:
        say(report.explain() + "\n")


def _entries(what: Sequence[str], everything: bool) -> list[Entry]:
    """The components that KIND and NAME mean. Names are looked up before anything is imported."""
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
