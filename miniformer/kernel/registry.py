"""Which components exist, read from the entry points of installed distributions, and how a name becomes a class.

A registry is a value. `Registry(discover())` is the default of the process, made at its first use; tests make their own and put
it in force with `use_registry`. Listing, look-up and the error for an unknown name import neither a component nor torch. All
third-party code is called under guard, so that a broken package never breaks a command that uses another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from .conformance import why_not_a_component
from .discovery import allowed_distributions, discover, packages_elsewhere
from .entries import COMMAND, ELSEWHERE, OURS, Availability, Entry, canonical, normalise_distribution
from .errors import AmbiguousComponent, UnavailableComponent, UnknownComponent, did_you_mean, in_one_line, nearest
from .kinds import KINDS
from .renamed import old_attributes

__all__ = ["COMMAND", "ELSEWHERE", "OURS", "Availability", "Entry", "Registry", "allowed_distributions", "canonical",
           "current_registry", "discover", "normalise_distribution", "use_registry"]


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
                loaded: object = EntryPoint(entry.name, entry.target, entry.kind).load()
                stage = "conformance"
                problem = why_not_a_component(KINDS[kind], loaded)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a plugin raises becomes its state in the list, and no crash
                problem = in_one_line(error)
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

    def unknown_of_any_kind(self, name: str) -> str:
        """The hint for a name that no component of any kind has: what is near, what to install, what there is."""
        names = sorted({entry.name for entry in self._entries.values() if entry.kind in KINDS})
        distribution, _, short = canonical(name).rpartition(":")
        elsewhere = [(kind, package) for (kind, other), package in packages_elsewhere().items() if other == short]
        hints = [f"  there is {_a(kind)} of that name in {package}; to get it: pip install {package}"
                 for kind, package in elsewhere if kind in KINDS]
        if distribution and not any(entry.distribution == distribution for entry in self._entries.values()):
            hints = [f"  to get it: pip install {distribution}"]
        first = f"there is no component named {name!r}{'' if hints else did_you_mean(short, names)}"
        return "\n".join([first, *hints, f"  installed: {', '.join(names)}"])

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
            lines.append(f"  there is {_a(other)} of that name")
        package = distribution or packages_elsewhere().get((kind, short), "")
        if package and not any(e.distribution == package for e in here):
            lines.append(f"  to get it: pip install {package}")
        lines.append(f"  installed: {', '.join(usable) or 'none'}")
        lines += [f"  {e.state.value}: {e.name} of {e.provider} ({e.reason})" for e in self._entries.values()
                  if e.state is not Availability.AVAILABLE and (e.kind == kind or e.kind not in KINDS)]
        return "\n".join(lines)


def _a(kind: str) -> str:
    """A kind with its article."""
    return f"{'an' if kind[0] in 'aeiouf' else 'a'} {kind}"


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
