"""`python -m tests.mutations`: put each fault into a copy of the source, and see whether its tests notice it."""

from __future__ import annotations

import queue
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from .copies import Copy, Outcome
from .fault import Fault
from .faults import FAULTS, ROOMS

ENOUGH = 0.95
"""The share of faults that has to be noticed."""
UNKNOWN = 2
"""The exit code of a call that makes no sense, or of tests that cannot be run."""


@dataclass(frozen=True)
class Verdict:
    """Whether a fault was noticed, and by what.

    Attributes:
        fault: the fault.
        noticed: a test failed with it that passes without it.
        by: the first such test, or why there is none.
        seconds: how long its tests took.
    """

    fault: Fault
    noticed: bool
    by: str
    seconds: float


@click.command("tests.mutations")
@click.option("--only", multiple=True, metavar="FAULT", help="Only this fault, or several with commas between them.")
@click.option("--room", "rooms", multiple=True, type=click.Choice(list(ROOMS)), help="Only its faults; may be repeated.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Faults that are tried at a time.")
@click.option("--list", "listed", is_flag=True, help="List the faults, and try none.")
def main(only: tuple[str, ...], rooms: tuple[str, ...], jobs: int, listed: bool) -> None:
    """Put each fault into a copy of the source, and see whether its tests notice it.

    Ends with 1 if fewer than 95 % are noticed.
    """
    faults = _chosen([name for names in only for name in names.split(",")], rooms)
    if listed:
        for fault in faults:
            click.echo(f"{fault.name}  {fault.file}: {fault.harm}")
        return
    if problems := [problem for fault in faults if (problem := fault.problem())]:
        raise click.ClickException("\n".join(problems))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(min(jobs, len(faults)))]
        verdicts = _tried(faults, copies)
    _report(verdicts, time.monotonic() - started)
    if sum(verdict.noticed for verdict in verdicts) < ENOUGH * len(verdicts):
        sys.exit(1)


def _chosen(names: Sequence[str], rooms: Sequence[str]) -> list[Fault]:
    """The faults that are asked for."""
    known = {fault.name for fault in FAULTS}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"there is no fault {unknown[0]!r}; --list shows them all")
    wanted = [fault for room, faults in ROOMS.items() if not rooms or room in rooms for fault in faults]
    return [fault for fault in wanted if not names or fault.name in names]


def _tried(faults: Sequence[Fault], copies: Sequence[Copy]) -> list[Verdict]:
    """The verdicts on all faults, each told as soon as it is known."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def run(tests: Sequence[str], fault: Fault | None = None) -> Outcome:
        copy = free.get()
        try:
            if fault is None:
                return copy.run(tests, stop_at_first=False, longest=None)
            with copy.with_fault(fault):
                return copy.run(tests, stop_at_first=True)
        finally:
            free.put(copy)

    def verdict(fault: Fault) -> Verdict:
        if broken := [test for test in fault.selection if any(_is_part(name, test) for name in failing)]:
            return _told(Verdict(fault, False, f"{broken[0]} fails without the fault", 0.0))
        outcome = run(fault.selection, fault)
        by = "no test" if outcome.passed else "a test that hangs" if outcome.code is None else (
            outcome.failures or ["tests that cannot start"])[0]
        return _told(Verdict(fault, not outcome.passed, by, outcome.seconds))

    with ThreadPoolExecutor(len(copies)) as pool:
        tests = _together(faults)
        healthy = list(pool.map(run, [part for i in range(len(copies)) if (part := tests[i::len(copies)])]))
        for outcome in healthy:
            if outcome.code not in (0, 1):
                click.echo(outcome.output, err=True)
                click.echo("the tests cannot be run without any fault", err=True)
                sys.exit(UNKNOWN)
        failing = [name for outcome in healthy for name in outcome.failures]
        click.echo(f"without a fault: {len(tests)} files and tests, {sum(outcome.seconds for outcome in healthy):.0f} s; "
                   + (f"failing: {', '.join(failing)}" if failing else "all pass"))
        return list(pool.map(verdict, faults))


def _together(faults: Sequence[Fault]) -> list[str]:
    """All tests of some faults, each once: no single test of a file that is there as a whole."""
    tests = dict.fromkeys(test for fault in faults for test in fault.selection)
    return sorted(test for test in tests if "::" not in test or test.partition("::")[0] not in tests)


def _is_part(name: str, test: str) -> bool:
    """Whether the test of that name is among those that `test` selects."""
    return name == test or name.startswith((f"{test}::", f"{test}["))


def _told(verdict: Verdict) -> Verdict:
    mark = "noticed    " if verdict.noticed else "NOT NOTICED"
    click.echo(f"{mark}  {verdict.fault.name.ljust(52)} {verdict.seconds:5.1f} s  {verdict.by}")
    return verdict


def _report(verdicts: Sequence[Verdict], seconds: float) -> None:
    """What was noticed, room by room and in all, and what was not with the harm that it does."""
    click.echo()
    for room, faults in ROOMS.items():
        of_room = [verdict for verdict in verdicts if verdict.fault in faults]
        if of_room:
            click.echo(f"{room.ljust(12)} {sum(verdict.noticed for verdict in of_room):3} of {len(of_room):3}")
    noticed = sum(verdict.noticed for verdict in verdicts)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    click.echo(f"{'together'.ljust(12)} {noticed:3} of {len(verdicts):3} noticed, {100 * noticed / len(verdicts):.1f} %; "
               f"{seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} CPU seconds")
    for verdict in verdicts:
        if not verdict.noticed:
            click.echo(f"not noticed: {verdict.fault.name} ({verdict.fault.file}: {verdict.fault.harm}); {verdict.by}")


if __name__ == "__main__":
    main()
