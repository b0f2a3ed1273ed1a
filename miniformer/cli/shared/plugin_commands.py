"""Commands of plugins: what the entry points of group `miniformer.command` declare."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from miniformer.kernel.registry import Entry


class PluginCommands:
    """The commands of the plugins that are installed, read from metadata once; nothing is imported.

    Attributes:
        entries: the commands that are offered; one that cannot be used says why when it is called.
        blocked: those that are not offered.
        notes: what is wrong with metadata of installed distributions, a line each.
    """

    def __init__(self) -> None:
        from miniformer.kernel.discovery import discover_commands
        from miniformer.kernel.entries import COMMAND, Availability

        found = discover_commands()
        commands = [entry for entry in found if entry.kind == COMMAND]
        self.blocked = [entry for entry in commands if entry.state is Availability.BLOCKED]
        self.entries = [entry for entry in commands if entry.state is not Availability.BLOCKED]
        self.notes = [entry.reason.removeprefix("metadata: ") for entry in found if entry.kind != COMMAND]

    @classmethod
    def of(cls, context: click.Context) -> PluginCommands:
        """Those of one call of the command line."""
        key = f"{__name__}.{cls.__name__}"
        if key not in context.meta:
            context.meta[key] = cls()
        return context.meta[key]

    def names(self) -> set[str]:
        """The names of the commands."""
        return {entry.name for entry in self.entries}

    def named(self, name: str) -> Entry | None:
        """The command of a name; where two distributions have it, the first that can be used."""
        from miniformer.kernel.entries import Availability

        namesakes = [entry for entry in self.entries if entry.name == name]
        usable = [entry for entry in namesakes if entry.state is Availability.AVAILABLE]
        return next(iter(usable or namesakes), None)


def dashed(name: str) -> str:
    """A command's name as it is typed: with dashes."""
    return name.replace("_", "-")


def why_no_command(name: str, context: click.Context, names: Iterable[str]) -> str:
    """The hint for a name that no command has: which package has it, why it is not offered, or what is near."""
    from miniformer.kernel.discovery import packages_elsewhere
    from miniformer.kernel.entries import COMMAND
    from miniformer.kernel.errors import nearest

    typed, names = dashed(name), list(names)
    for entry in PluginCommands.of(context).blocked:
        if entry.name == typed:
            return f"; {entry.provider} has it, and is blocked: {entry.reason}"
    elsewhere = {dashed(command): package for (kind, command), package in packages_elsewhere().items() if kind == COMMAND}
    close = nearest(typed, [*names, *elsewhere])
    if typed in elsewhere:
        return f"; it is one of {elsewhere[typed]}, which is not installed; to get it: pip install {elsewhere[typed]}"
    hints = [repr(one) if one in names else f"{one!r} (pip install {elsewhere[one]})" for one in close]
    return f"; did you mean {' or '.join(hints)}?" if hints else ""


def load_command(entry: Entry) -> click.Command:
    """The command of a plugin.

    Raises:
        UnavailableComponent: it cannot be imported, it is no click command, or its package is not for this miniformer.
    """
    from miniformer.kernel.errors import UnavailableComponent, in_one_line
    from miniformer.kernel.registry import Availability

    told = f"command {entry.name!r} of {entry.provider} ({entry.target}) is"
    if entry.state is not Availability.AVAILABLE:
        raise UnavailableComponent(f"{told} {entry.state.value}: {entry.reason}")
    try:
        with redirect_stdout(sys.stderr):  # what a plugin prints at import is no part of its command's result
            loaded = EntryPoint(entry.name, entry.target, entry.kind).load()
        if isinstance(loaded, click.Command):
            return loaded
        problem = f"conformance: a command is a click.Command; this is {type(loaded).__name__} {loaded!r:.80}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way
        problem = f"import: {in_one_line(error)}"
    raise UnavailableComponent(f"{told} broken: {problem}")


def broken_commands(context: click.Context, own: Iterable[str], load: bool) -> list[Entry]:
    """The commands of plugins that cannot be called, each with the reason.

    Args:
        context: the call of the command line.
        own: names of miniformer's own commands, which no plugin can replace.
        load: import each command, too, to see whether it can be.
    """
    from miniformer.kernel.errors import UnavailableComponent
    from miniformer.kernel.registry import OURS, Availability

    owners, broken = dict.fromkeys(own, OURS), []
    for entry in PluginCommands.of(context).entries:
        owner = owners.setdefault(entry.name, entry.provider)
        if entry.state is not Availability.AVAILABLE:
            broken.append(entry)
        elif owner != entry.provider:
            reason = f"metadata: {entry.name!r} is a command of {owner}; choose another name"
            broken.append(replace(entry, state=Availability.BROKEN, reason=reason))
        elif load:
            try:
                load_command(entry)
            except UnavailableComponent as error:
                reason = str(error).partition(" is broken: ")[2]
                broken.append(replace(entry, state=Availability.BROKEN, reason=reason))
    return broken
