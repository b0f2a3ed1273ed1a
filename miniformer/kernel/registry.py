"""Which components exist, read from the entry points of installed distributions, and how a name becomes a class.

A registry is a value. `Registry(discover())` is the default of the process, made at its first use; tests make their own and put
it in force with `use_registry`. Listing, look-up and the error for an unknown name import neither a component nor torch. All
third-party code is called under guard, so that a broken package never breaks a command that uses another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from .conformance import why_not_a_component
from .errors import AmbiguousComponent, UnavailableComponent, UnknownComponent, did_you_mean, nearest
from .kinds import KINDS
from .renamed import old_attributes

OURS = "miniformer"
COMMAND, ELSEWHERE = "command", "elsewhere"
"""Entry-point groups beside those of components: commands, found by the command line; and `kind.name` = the package that has a
component which this one has not, so that a missing component's error says what to install."""


class Availability(str, Enum):
    """Whether a component can be used."""

    AVAILABLE = "available"
    BROKEN = "broken"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Entry:
    """A component as its distribution declares it.

    Attributes:
        kind, name: its kind, and its short name.
        target: `module:attribute` to import.
        distribution, version: its provider.
        state, reason: whether it can be used, and if not, why.
    """

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    state: Availability = Availability.AVAILABLE
    reason: str = ""

    @property
    def qualified(self) -> str:
        """`distribution:name`, which is never ambiguous."""
        return f"{self.distribution}:{self.name}"

    @property
    def saved(self) -> str:
        """The name that a spec stores: the short one of a built-in, the qualified one of a third party's."""
        return self.name if self.distribution == OURS else self.qualified

    @property
    def provider(self) -> str:
        """Distribution and version, to be shown."""
        return f"{self.distribution} {self.version}"


def canonical(name: str) -> str:
    """The form in which names are compared: lower case, with dashes for underscores."""
    distribution, colon, short = name.strip().rpartition(":")
    return normalise_distribution(distribution) + colon + short.lower().replace("_", "-")


def normalise_distribution(distribution: str) -> str:
    """The form in which package indexes compare names of distributions."""
    return re.sub(r"[-_.]+", "-", distribution).strip().lower()


def allowed_distributions(plugins: str | None = None) -> set[str] | None:
    """The distributions whose plugins may be used, in the form of `normalise_distribution`; None: all.

    Args:
        plugins: a comma-separated list, `none` for no distribution; by default the environment variable MINIFORMER_PLUGINS.
    """
    allowed = os.environ.get("MINIFORMER_PLUGINS") if plugins is None else plugins
    return {normalise_distribution(name) for name in allowed.split(",")} if allowed else None


class Registry:
    """Finds components by kind and name, and loads their classes under guard."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            self._entries.setdefault((entry.kind, entry.qualified), entry)
        self._classes: dict[tuple[str, str], type] = {}

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All entries, or those of a kind, in order of kind, name and distribution."""
        order = {name: i for i, name in enumerate(KINDS)}
        described = [self._described(e) for e in self._entries.values() if kind in (None, e.kind)]
        return sorted(described, key=lambda e: (order.get(e.kind, len(order)), e.name, e.distribution != OURS, e.distribution))

    def find(self, kind: str, name: str) -> Entry:
        """Find the entry that `name` means, short or qualified. Nothing is imported.

        Raises:
            UnknownComponent, AmbiguousComponent, UnavailableComponent: the text says what would be right.
        """
        if not isinstance(name, str):  # what a file has in its place
            raise UnknownComponent(f"{kind}: expected a name; found {name!r:.80}")
        wanted = canonical(name)
        if ":" in wanted:
            entry = self._entries.get((kind, wanted))
        else:
            namesakes = [e for e in self._entries.values() if (e.kind, e.name) == (kind, wanted)]
            entry = next((e for e in namesakes if e.distribution == OURS), None)
            if entry is None:
                candidates = [e for e in namesakes if e.state is Availability.AVAILABLE] or namesakes
                if len(candidates) > 1:
                    choices = " or ".join(e.qualified for e in candidates)
                    raise AmbiguousComponent(f"{kind} {wanted!r} is registered by {len(candidates)} packages; say {choices}")
                entry = candidates[0] if candidates else None
        if entry is None:
            raise UnknownComponent(self._unknown(kind, name, wanted))
        if entry.state is not Availability.AVAILABLE:
            raise UnavailableComponent(f"{kind} {entry.name!r} of {entry.provider} is {entry.state.value}: {entry.reason}")
        return entry

    def load(self, kind: str, name: str) -> type:
        """Load the class of a component; at its first use it is imported and checked against its kind's interface."""
        entry = self.find(kind, name)
        key = (kind, entry.qualified)
        if key not in self._classes:
            stage, problem = "import", ""
            try:
                module, _, attribute = entry.target.partition(":")
                loaded: object = importlib.import_module(module)
                for part in attribute.split("."):
                    loaded = getattr(loaded, part)
                stage = "conformance"
                problem = why_not_a_component(KINDS[kind], loaded)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # whatever a plugin raises becomes its state in the list, and no crash
                problem = f"{type(error).__name__}: {error}"
            if problem:
                self._entries[key] = replace(entry, state=Availability.BROKEN, reason=f"{stage}: {problem}")
                return self.load(kind, entry.qualified)  # raises what `find` says of a broken entry
            assert isinstance(loaded, type)
            self._classes[key] = loaded
        return self._classes[key]

    def load_all(self, kind: str | None = None) -> None:
        """Import every entry that can be imported, or those of a kind; `entries` then shows which are broken, and why."""
        for entry in list(self._entries.values()):
            if entry.state is Availability.AVAILABLE and entry.kind in KINDS and kind in (None, entry.kind):
                try:
                    self.load(entry.kind, entry.qualified)
                except UnavailableComponent:
                    continue

    def _described(self, entry: Entry) -> Entry:
        """The entry as it is listed: marked ambiguous if another third party registers its short name too."""
        rivals = [e for e in self._entries.values() if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry
                  and (e.distribution == OURS or e.state is Availability.AVAILABLE)]
        if entry.state is not Availability.AVAILABLE or entry.distribution == OURS or not rivals:
            return entry
        if any(e.distribution == OURS for e in rivals):
            return replace(entry, reason=f"the short name is miniformer's own; say {entry.qualified}")
        return replace(entry, state=Availability.AMBIGUOUS, reason=f"say {entry.qualified}")

    def _unknown(self, kind: str, name: str, wanted: str) -> str:
        """The error for an unknown name: what is near, other kinds that have it, what to install, what there is."""
        here = [e for e in self._entries.values() if e.kind == kind]
        usable = sorted({e.name for e in here if e.state is Availability.AVAILABLE})
        lines = [f"there is no {kind} named {name!r}"]
        distribution, _, short = wanted.rpartition(":")
        close = nearest(short, usable)
        if close:
            lines.append(f"  did you mean: {', '.join(close)}")
        for other in sorted({e.kind for e in self._entries.values() if e.name == short and e.kind in KINDS} - {kind}):
            lines.append(f"  there is {'an' if other[0] in 'aeiouf' else 'a'} {other} of that name")
        package = distribution or _package_elsewhere(kind, short)
        if package and not any(e.distribution == package for e in here):
            lines.append(f"  to get it: pip install {package}")
        lines.append(f"  installed: {', '.join(usable) or 'none'}")
        lines += [f"  {e.state.value}: {e.name} of {e.provider} ({e.reason})" for e in self._entries.values()
                  if e.state is not Availability.AVAILABLE and (e.kind == kind or e.kind not in KINDS)]
        return "\n".join(lines)


def discover(path: list[str] | None = None, plugins: str | None = None) -> list[Entry]:
    """Read the entries that installed distributions declare. Only metadata is read; nothing is imported.

    Args:
        path: folders to search instead of `sys.path`.
        plugins: the third parties that are not blocked, as `allowed_distributions` takes them.
    """
    allowed = allowed_distributions(plugins)
    entries: list[Entry] = []
    seen: set[str] = set()
    find = importlib.metadata.distributions
    for distribution in find() if path is None else find(path=path):
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if "[miniformer." not in text:
                continue
            name = normalise_distribution(distribution.metadata["Name"])
            if name not in seen:  # the first on the path is the one that Python imports
                entries += _declared(distribution, name, allowed)
            seen.add(name)
        except (Exception, SystemExit) as error:
            name = str(getattr(distribution, "_path", "unknown")).rpartition("/")[2]
            entries.append(Entry("distribution", name, "", name, "?", Availability.BROKEN,
                                 f"metadata: {type(error).__name__}: {error}"))
    return entries


def _declared(distribution: importlib.metadata.Distribution, name: str, allowed: set[str] | None) -> Iterator[Entry]:
    """The entries of one distribution."""
    state, reason = Availability.AVAILABLE, ""
    if name != OURS:
        if allowed is not None and name not in allowed:
            state, reason = Availability.BLOCKED, "third-party plugins are restricted (MINIFORMER_PLUGINS, --no-plugins)"
        elif needs := _unmet(distribution.requires or []):
            state, reason = Availability.INCOMPATIBLE, needs
    for point in distribution.entry_points:
        kind = point.group.removeprefix("miniformer.")
        if point.group.startswith("miniformer.") and kind not in (COMMAND, ELSEWHERE):
            short, problem = canonical(point.name), ""
            if kind not in KINDS:
                problem = f"there is no kind {kind!r}{did_you_mean(kind, [*KINDS, COMMAND])}"
            elif re.search(r"[\s:]", short):  # a colon ends the distribution in a spec's name
                short, problem = point.name, f"a name has no space and no colon; found {point.name!r}"
            fine = state is not Availability.AVAILABLE or not problem
            yield Entry(kind, short, point.value, name, distribution.version, *(
                (state, reason) if fine else (Availability.BROKEN, f"metadata: {problem}")))


def _unmet(requirements: list[str]) -> str:
    """Why the installed miniformer does not meet a plugin's requirement; "" if it does."""
    for line in requirements:
        if re.match(r"miniformer\s*[\[(<>=!~]", line, re.IGNORECASE):
            from packaging.requirements import Requirement

            ours, needed = importlib.metadata.version(OURS), Requirement(line)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and not needed.specifier.contains(ours, prereleases=True):
                return f"it needs {line}, and this is miniformer {ours}"
    return ""


def _package_elsewhere(kind: str, name: str) -> str:
    """The package that provides a component which is not installed, if an installed one knows it; else ""."""
    for point in importlib.metadata.entry_points(group=f"miniformer.{ELSEWHERE}"):
        if point.name == f"{kind}.{name}":
            return normalise_distribution(point.value)
    return ""


_current: ContextVar[Registry | None] = ContextVar("miniformer_registry", default=None)
_default: list[Registry] = []


def current_registry() -> Registry:
    """The registry in force: that of `use_registry`, or the default of the process, which is made at its first use."""
    registry = _current.get()
    if registry is None:
        if not _default:
            _default.append(Registry(discover()))
        registry = _default[0]
    return registry


@contextmanager
def use_registry(registry: Registry) -> Iterator[Registry]:
    """Put `registry` in force for the specs that are validated and built inside the `with` block."""
    token = _current.set(registry)
    try:
        yield registry
    finally:
        _current.reset(token)


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
