"""What components exist, by the entry points of installed distributions. Importing one is the last step.

A registry is a value: `Registry(discover())` is the process-wide default, made when first asked for; tests make their
own and put it in force with `use_registry`. Listing, look-up and the error for an unknown name import no component and
no torch. Every touch of third-party code is guarded, so that one bad package never breaks a command that uses another.
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

from .conformance import why_not_a_component
from .errors import AmbiguousComponent, UnavailableComponent, UnknownComponent, did_you_mean, nearest
from .kinds import KINDS

OURS = "miniformer"
COMMAND = "command"
"""What entry points declare beside components: commands, which the command line finds."""
ELSEWHERE = {("ffn", "moe"): "miniformer-moe", ("position", "bert-embeddings"): "miniformer-hf",
             ("head", "bert-mlm"): "miniformer-hf", ("head", "bert-pooled"): "miniformer-hf"}
"""Components of first-party plugins, so that a missing one says what to install."""


class Availability(str, Enum):
    """Whether an entry can be used."""

    AVAILABLE = "available"
    BROKEN = "broken"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Entry:
    """One component as its distribution declares it.

    Attributes:
        kind, name: what it is and what it is called.
        target: `module:attribute` to import.
        distribution, version: its provider.
        state, reason: whether it can be used, and why not.
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
        """`distribution:name`, always valid."""
        return f"{self.distribution}:{self.name}"

    @property
    def saved(self) -> str:
        """The name that a spec stores: short for a built-in, qualified for a third party's."""
        return self.name if self.distribution == OURS else self.qualified

    @property
    def provider(self) -> str:
        """Distribution and version, for people."""
        return f"{self.distribution} {self.version}"


def canonical(name: str) -> str:
    """Names are lower-case with dashes; an underscore is read as a dash. A distribution before it is as indexes compare it."""
    distribution, colon, short = name.strip().rpartition(":")
    return normalise_distribution(distribution) + colon + short.lower().replace("_", "-")


def normalise_distribution(distribution: str) -> str:
    """The name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).strip().lower()


def allowed_distributions(plugins: str | None = None) -> set[str] | None:
    """Distributions whose plugins may be used: those of `plugins`, by default of the environment variable MINIFORMER_PLUGINS.

    None: all. `none` is the name of none.
    """
    allowed = os.environ.get("MINIFORMER_PLUGINS") if plugins is None else plugins
    return {normalise_distribution(name) for name in allowed.split(",")} if allowed else None


class Registry:
    """Look-up of entries by kind and name, and guarded loading of the classes behind them."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            self._entries.setdefault((entry.kind, entry.qualified), entry)
        self._classes: dict[tuple[str, str], type] = {}

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All entries, or those of a kind, in order of kind, name and distribution."""
        order = {name: i for i, name in enumerate(KINDS)}
        found = [self._described(e) for e in self._entries.values() if kind in (None, e.kind)]
        return sorted(found, key=lambda e: (order.get(e.kind, len(order)), e.name, e.distribution != OURS,
                                            e.distribution))

    def find(self, kind: str, name: str) -> Entry:
        """The entry that `name`, short or qualified, means; nothing is imported.

        Raises:
            UnknownComponent, AmbiguousComponent, UnavailableComponent: with what would be right.
        """
        wanted = canonical(name)
        if ":" in wanted:
            entry = self._entries.get((kind, wanted))
        else:
            found = [e for e in self._entries.values() if (e.kind, e.name) == (kind, wanted)]
            entry = next((e for e in found if e.distribution == OURS), None)
            if entry is None:
                usable = [e for e in found if e.state is Availability.AVAILABLE] or found
                if len(usable) > 1:
                    choices = " or ".join(e.qualified for e in usable)
                    raise AmbiguousComponent(f"{kind} {wanted!r} is registered by {len(usable)} packages; say {choices}")
                entry = usable[0] if usable else None
        if entry is None:
            raise UnknownComponent(self._unknown(kind, name, wanted))
        if entry.state is not Availability.AVAILABLE:
            raise UnavailableComponent(f"{kind} {entry.name!r} of {entry.provider} is {entry.state.value}: {entry.reason}")
        return entry

    def load(self, kind: str, name: str) -> type:
        """The class of a component, imported and checked against its kind's interface on first use."""
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
            except BaseException as error:  # any failure of a plugin is a row in the list, not a crash
                problem = f"{type(error).__name__}: {error}"
            if problem:
                self._entries[key] = replace(entry, state=Availability.BROKEN, reason=f"{stage}: {problem}")
                return self.load(kind, entry.qualified)  # raises what `find` says of a broken entry
            assert isinstance(loaded, type)
            self._classes[key] = loaded
        return self._classes[key]

    def load_all(self, kind: str | None = None) -> None:
        """Import every entry that can be, or those of a kind, so that `entries` tells which are broken and why."""
        for entry in list(self._entries.values()):
            if entry.state is Availability.AVAILABLE and entry.kind in KINDS and kind in (None, entry.kind):
                try:
                    self.load(entry.kind, entry.qualified)
                except UnavailableComponent:
                    continue

    def _described(self, entry: Entry) -> Entry:
        """The entry, marked ambiguous where its short name has another third-party owner."""
        rivals = [e for e in self._entries.values() if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry
                  and (e.distribution == OURS or e.state is Availability.AVAILABLE)]
        if entry.state is not Availability.AVAILABLE or entry.distribution == OURS or not rivals:
            return entry
        if any(e.distribution == OURS for e in rivals):
            return replace(entry, reason=f"the short name is miniformer's own; say {entry.qualified}")
        return replace(entry, state=Availability.AMBIGUOUS, reason=f"say {entry.qualified}")

    def _unknown(self, kind: str, name: str, wanted: str) -> str:
        """What was asked, what is near, where else the name exists, what there is, what could have provided it."""
        here = [e for e in self._entries.values() if e.kind == kind]
        usable = sorted({e.name for e in here if e.state is Availability.AVAILABLE})
        lines = [f"there is no {kind} named {name!r}"]
        distribution, _, short = wanted.rpartition(":")
        close = nearest(short, usable)
        if close:
            lines.append(f"  did you mean: {', '.join(close)}")
        for other in sorted({e.kind for e in self._entries.values() if e.name == short and e.kind in KINDS} - {kind}):
            lines.append(f"  there is {'an' if other[0] in 'aeiouf' else 'a'} {other} of that name")
        package = distribution or ELSEWHERE.get((kind, short), "")
        if package and not any(e.distribution == package for e in here):
            lines.append(f"  to get it: pip install {package}")
        lines.append(f"  installed: {', '.join(usable) or 'none'}")
        lines += [f"  {e.state.value}: {e.name} of {e.provider} ({e.reason})" for e in self._entries.values()
                  if e.state is not Availability.AVAILABLE and (e.kind == kind or e.kind not in KINDS)]
        return "\n".join(lines)


def discover(path: list[str] | None = None, plugins: str | None = None) -> list[Entry]:
    """The entries that installed distributions declare; reads metadata, imports nothing.

    Args:
        path: folders to search instead of `sys.path`.
        plugins: `none`, or a comma-separated list of distributions: third parties that are not in it are blocked.
            Unless given, the environment variable MINIFORMER_PLUGINS says it; without that, all are welcome.
    """
    names = allowed_distributions(plugins)
    found: list[Entry] = []
    seen: set[str] = set()
    find = importlib.metadata.distributions
    for distribution in find() if path is None else find(path=path):
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if "[miniformer." not in text:
                continue
            name = normalise_distribution(distribution.metadata["Name"])
            if name not in seen:  # the first on the path is the one that Python imports
                found += _declared(distribution, name, names)
            seen.add(name)
        except (Exception, SystemExit) as error:
            name = str(getattr(distribution, "_path", "unknown")).rpartition("/")[2]
            found.append(Entry("distribution", name, "", name, "?", Availability.BROKEN,
                               f"metadata: {type(error).__name__}: {error}"))
    return found


def _declared(distribution: importlib.metadata.Distribution, name: str, names: set[str] | None) -> Iterator[Entry]:
    state, reason = Availability.AVAILABLE, ""
    if name != OURS:
        if names is not None and name not in names:
            state, reason = Availability.BLOCKED, "third-party plugins are restricted (MINIFORMER_PLUGINS, --no-plugins)"
        elif needs := _unmet(distribution.requires or []):
            state, reason = Availability.INCOMPATIBLE, needs
    for point in distribution.entry_points:
        kind = point.group.removeprefix("miniformer.")
        if point.group.startswith("miniformer.") and kind != COMMAND:
            short, problem = canonical(point.name), ""
            if kind not in KINDS:
                problem = f"there is no kind {kind!r}{did_you_mean(kind, [*KINDS, COMMAND])}"
            elif re.search(r"[\s:]", short):  # a colon ends the distribution in a spec's name
                short, problem = point.name, f"a name has no space and no colon; found {point.name!r}"
            fine = state is not Availability.AVAILABLE or not problem
            yield Entry(kind, short, point.value, name, distribution.version, *(
                (state, reason) if fine else (Availability.BROKEN, f"metadata: {problem}")))


def _unmet(requirements: list[str]) -> str:
    """Why a plugin's requirement of miniformer is not met by the one that is installed; "" if it is."""
    for line in requirements:
        if re.match(r"miniformer\s*[\[(<>=!~]", line, re.IGNORECASE):
            from packaging.requirements import Requirement

            ours, needed = importlib.metadata.version(OURS), Requirement(line)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and not needed.specifier.contains(ours, prereleases=True):
                return f"it needs {line}, and this is miniformer {ours}"
    return ""


_current: ContextVar[Registry | None] = ContextVar("miniformer_registry", default=None)
_default: list[Registry] = []


def current_registry() -> Registry:
    """The registry in force: what `use_registry` put there, or the process-wide default, made on first use."""
    registry = _current.get()
    if registry is None:
        if not _default:
            _default.append(Registry(discover()))
        registry = _default[0]
    return registry


@contextmanager
def use_registry(registry: Registry) -> Iterator[Registry]:
    """Put `registry` in force for specs that are validated and built inside."""
    token = _current.set(registry)
    try:
        yield registry
    finally:
        _current.reset(token)
