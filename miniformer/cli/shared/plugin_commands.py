"""Commands of plugins: what the entry points of group `miniformer.command` declare."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from miniformer.kernel.registry import Entry

GROUP = "miniformer.command"


def plugin_commands() -> list[importlib.metadata.EntryPoint]:
    """The entry points of the plugins that may be used (see MINIFORMER_PLUGINS); nothing is imported."""
    from miniformer.kernel.registry import allowed_distributions, normalise_distribution

    allowed = allowed_distributions()
    return [point for point in importlib.metadata.entry_points(group=GROUP)
            if allowed is None or (point.dist is not None and normalise_distribution(point.dist.name) in allowed)]


def dashed(name: str) -> str:
    """A command's name as it is typed: with dashes."""
    return name.replace("_", "-")


def load_command(point: importlib.metadata.EntryPoint) -> click.Command:
    """The command of a plugin.

    Raises:
        UnavailableComponent: it cannot be imported, or it is no click command.
    """
    from miniformer.kernel.errors import UnavailableComponent

    try:
        with redirect_stdout(sys.stderr):  # what a plugin prints at import is no part of its command's result
            loaded = point.load()
        if isinstance(loaded, click.Command):
            return loaded
        problem = f"conformance: a command is a click.Command; this is {type(loaded).__name__} {loaded!r:.80}"
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a plugin may fail in any way
        problem = f"import: {type(error).__name__}: {error}"
    entry = _entry(point)
    raise UnavailableComponent(f"command {entry.name!r} of {entry.provider} ({point.value}) is broken: {problem}")


def broken_commands(own: Iterable[str], load: bool) -> list[Entry]:
    """The commands of plugins that cannot be called, each with the reason.

    Args:
        own: names of miniformer's own commands, which no plugin can replace.
        load: import each command, too, to see whether it can be.
    """
    from miniformer.kernel.errors import UnavailableComponent
    from miniformer.kernel.registry import OURS, Availability

    owners, broken = dict.fromkeys(own, OURS), []
    for point in plugin_commands():
        entry, reason = _entry(point), ""
        owner = owners.setdefault(entry.name, entry.provider)
        if owner != entry.provider:
            reason = f"metadata: {entry.name!r} is a command of {owner}; choose another name"
        elif load:
            try:
                load_command(point)
            except UnavailableComponent as error:
                reason = str(error).partition(" is broken: ")[2]
        if reason:
            broken.append(replace(entry, state=Availability.BROKEN, reason=reason))
    return broken


def _entry(point: importlib.metadata.EntryPoint) -> Entry:
    from miniformer.kernel.registry import COMMAND, Entry, normalise_distribution

    name, version = (normalise_distribution(point.dist.name), point.dist.version) if point.dist else ("unknown", "?")
    return Entry(COMMAND, dashed(point.name), point.value, name, version)
