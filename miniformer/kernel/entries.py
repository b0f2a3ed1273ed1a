"""What is installed, as data: a distribution, an entry for each component that it declares, and how names are compared."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import EntryPoint

OURS = "miniformer"
COMMAND, ELSEWHERE = "command", "elsewhere"
"""Entry-point groups beside those of components: commands, found by the command line; and `kind.name` = the package that has a
component or a command which this one has not, so that an error says what to install."""
DISTRIBUTION = "distribution"
"""The kind of an entry that stands for a whole distribution whose metadata cannot be used."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A distribution as its metadata describe it.

    Attributes:
        name, version: the name in the form of `normalise_distribution`; of unreadable metadata, the name of their folder.
        place: the path of the metadata.
        points: its entry points in groups of miniformer.
        requires: the distributions that it needs; read only where it has such entry points.
        problem: why it is left out, beginning with a path; "" if it counts.
        stale: it is left out since other metadata of this distribution describe the code that Python imports.
    """

    name: str
    version: str
    place: str
    points: tuple[EntryPoint, ...] = ()
    requires: tuple[str, ...] = ()
    problem: str = ""
    stale: bool = False

    @property
    def folder(self) -> str:
        """The folder in which the metadata are, and in an ordinary installation the code too."""
        return os.path.dirname(self.place)


class Availability(str, Enum):
    """Whether a component can be used."""

    AVAILABLE = "available"
    BROKEN = "broken"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    AMBIGUOUS = "ambiguous"
    STALE = "stale"


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
