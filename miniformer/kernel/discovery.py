"""Which components and commands installed distributions declare: their metadata read as entries, without importing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint

from .distributions import GROUPS, installed, version_of
from .entries import COMMAND, DISTRIBUTION, ELSEWHERE, OURS, Availability, Entry, Installed, canonical, normalise_distribution
from .errors import did_you_mean
from .kinds import KINDS


def allowed_distributions(plugins: str | None = None) -> set[str] | None:
    """The distributions whose plugins may be used, in the form of `normalise_distribution`; None: all.

    Args:
        plugins: a comma-separated list, `none` for no distribution; by default the environment variable MINIFORMER_PLUGINS.
    """
    allowed = os.environ.get("MINIFORMER_PLUGINS") if plugins is None else plugins
    return {normalise_distribution(name) for name in allowed.split(",")} if allowed else None


def discover(path: list[str] | None = None, plugins: str | None = None) -> list[Entry]:
    """The components that installed distributions declare, and an entry for each distribution whose metadata cannot be used.

    Args:
        path: folders to search instead of `sys.path`.
        plugins: the third parties that are not blocked, as `allowed_distributions` takes them.
    """
    allowed = allowed_distributions(plugins)
    entries: list[Entry] = []
    for distribution in installed(path):
        if distribution.problem:
            entries.append(_problem(distribution, entries))
        else:
            entries += [_component(point, entry) for point, entry in _declared(distribution, allowed)
                        if entry.kind not in (COMMAND, ELSEWHERE)]
    return entries


def discover_commands(plugins: str | None = None) -> list[Entry]:
    """The commands that installed distributions declare, with dashes in their names; and the entries of unusable metadata."""
    allowed = allowed_distributions(plugins)
    entries: list[Entry] = []
    for distribution in installed():
        if distribution.problem:
            entries.append(_problem(distribution, entries))
        else:
            entries += [replace(entry, name=point.name.replace("_", "-")) for point, entry in _declared(distribution, allowed)
                        if entry.kind == COMMAND]
    return entries


def packages_elsewhere() -> dict[tuple[str, str], str]:
    """By kind and name: the packages of components and commands that need not be installed, as installed packages tell them."""
    points = (point for distribution in installed() for point in distribution.points if point.group == GROUPS + ELSEWHERE)
    return {(kind, name): normalise_distribution(point.value) for point in points
            for kind, _, name in (point.name.partition("."),)}


def _problem(distribution: Installed, before: list[Entry]) -> Entry:
    """The entry of a distribution that is left out; of two with one name, the second has its path for a name."""
    folder = os.path.basename(distribution.place)
    name = distribution.place if folder in {entry.name for entry in before if entry.kind == DISTRIBUTION} else folder
    state = Availability.STALE if distribution.stale else Availability.BROKEN
    return Entry(DISTRIBUTION, name, "", distribution.name, distribution.version, state, f"metadata: {distribution.problem}")


def _declared(distribution: Installed, allowed: set[str] | None) -> Iterator[tuple[EntryPoint, Entry]]:
    """The entry points of a distribution, each with an entry."""
    state, reason = Availability.AVAILABLE, ""
    if distribution.name != OURS:
        if allowed is not None and distribution.name not in allowed:
            state, reason = Availability.BLOCKED, "third-party plugins are restricted (MINIFORMER_PLUGINS, --no-plugins)"
        elif needs := _unmet(distribution):
            state, reason = needs
    for point in distribution.points:
        kind, problem = point.group.removeprefix(GROUPS), ""
        if kind not in (*KINDS, COMMAND, ELSEWHERE):
            problem = f"there is no kind {kind!r}{did_you_mean(kind, [*KINDS, COMMAND])}"
        elif kind != ELSEWHERE and EntryPoint.pattern.match(point.value) is None:
            problem = f"expected module:attribute; found {point.value!r:.80}"
        fine = state is not Availability.AVAILABLE or not problem
        yield point, Entry(kind, point.name, point.value, distribution.name, distribution.version, *(
            (state, reason) if fine else (Availability.BROKEN, f"metadata: {problem}")))


def _component(point: EntryPoint, entry: Entry) -> Entry:
    """An entry with the name that specs say; a name that none could say is broken."""
    short = canonical(point.name)
    if not re.search(r"[\s:]", short):  # a colon ends the distribution in a spec's name
        return replace(entry, name=short)
    if entry.state is not Availability.AVAILABLE:
        return entry
    return replace(entry, state=Availability.BROKEN, reason=f"metadata: a name has no space and no colon; found {point.name!r}")


def _unmet(distribution: Installed) -> tuple[Availability, str] | None:
    """Why the installed miniformer does not meet a plugin's requirement; None if it does."""
    for line in distribution.requires:
        if re.match(r"miniformer\s*[\[(<>=!~;]", line, re.IGNORECASE):
            from packaging.requirements import InvalidRequirement, Requirement

            try:
                needed = Requirement(line)
                applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            except (InvalidRequirement, ValueError) as error:
                return Availability.BROKEN, f"metadata: {distribution.place}: Requires-Dist {line!r}: {error}".split("\n")[0]
            ours = version_of(OURS) or "0"
            if applies and not needed.specifier.contains(ours, prereleases=True):
                return Availability.INCOMPATIBLE, f"it needs {line}, and this is miniformer {ours}"
    return None
