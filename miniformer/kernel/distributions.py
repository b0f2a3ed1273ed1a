"""The metadata of installed distributions, read so that one whose metadata is broken harms no other.

`importlib.metadata` raises at the first file that it cannot read, and of two metadata of one distribution it takes the first.
Here each distribution is read by itself: what is wrong with it becomes a text. Of several metadata of one distribution, the one
counts whose code Python would import.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint

from .entries import Installed, normalise_distribution
from .errors import in_one_line

GROUPS = "miniformer."
"""How the names of our groups of entry points begin."""
HEAD = 1024
"""Bytes of the metadata of other people's distributions that are read first: their name is at the beginning."""
HEADER = re.compile(r"^(Name|Version):[ \t]*(\S+)[ \t\r]*$", re.MULTILINE)
REQUIRES = re.compile(r"^Requires-Dist:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_find_all: Callable[..., Iterable[Distribution]] = Distribution.discover


def installed(path: Sequence[str] | None = None) -> list[Installed]:
    """What is installed, in the order of the path. Nothing is imported and nothing is printed.

    Args:
        path: folders to search instead of `sys.path`.
    """
    folders = sys.path if path is None else path
    found = list(_found(folders))
    namesakes: dict[str, list[Installed]] = {}
    for one in found:
        if not one.problem:
            namesakes.setdefault(one.name, []).append(one)
    for rivals in namesakes.values():
        if len(rivals) > 1 and any(rival.points for rival in rivals):
            from .rivals import imported_of  # most environments have none

            counts = imported_of(rivals, folders)
            found = [_left_out(one, counts) if one in rivals and one is not counts else one for one in found]
    return found


def version_of(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed, or its metadata cannot be read."""
    found = [one for one in _found(sys.path, distribution, fully=True) if not one.problem]
    if len(found) > 1:
        from .rivals import imported_of

        return imported_of(found, sys.path).version
    return found[0].version if found else None


@contextmanager
def broken_left_out() -> Iterator[None]:
    """Inside, `importlib.metadata` passes over distributions whose metadata cannot be read.

    torch, pydantic and Lightning ask it for entry points of all distributions, and end with the error of the first broken one.
    """
    legible: dict[str, bool] = {}

    def discover(cls: type[Distribution], /, **options: object) -> Iterator[Distribution]:
        if options.get("context") is None:  # a search ends at the first entry of the path that is no text
            options = {"path": [folder for folder in sys.path if isinstance(folder, str)], **options}
        for distribution in _find_all(**options):
            place = _place(distribution)
            if place not in legible:
                legible[place] = not _read(distribution, place, fully=False).problem
            if legible[place]:
                yield distribution

    before = vars(Distribution)["discover"]
    Distribution.discover = classmethod(discover)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Distribution.discover = before  # type: ignore[method-assign]


def _found(folders: Sequence[str], name: str | None = None, fully: bool = False) -> Iterator[Installed]:
    """The distributions in some folders, or those of a name, each once."""
    seen = set()
    wanted = {"name": name} if name else {}
    for folder in folders:
        if not isinstance(folder, str):  # imports ignore it too
            continue
        try:  # one folder at a time, so that one which cannot be searched hides no other
            distributions = list(_find_all(path=[folder], **wanted))
        except Exception as error:
            problem = f"{folder}: cannot be searched for distributions: {in_one_line(error)}"
            found = [Installed(folder, "?", folder, problem=problem)]
        else:
            found = [_read(distribution, _place(distribution), fully) for distribution in distributions]
        for one in found:
            # of a distribution that is neither ours nor broken, a second reading through a link does no harm
            place = os.path.realpath(one.place) if one.points or one.problem else one.place
            if place not in seen:
                seen.add(place)
                yield one


def _left_out(one: Installed, counts: Installed) -> Installed:
    """Metadata of a distribution of which other metadata count; only where they say something else, this is a problem."""
    if (one.version, set(one.points)) == (counts.version, set(counts.points)):
        return replace(one, points=())
    problem = (f"{one.place}: other metadata of {counts.name}, in {counts.place}, describe the code that Python imports "
               f"({counts.version}); remove what is left of {one.version}")
    return replace(one, points=(), problem=_printable(problem), stale=True)


def _printable(text: str) -> str:
    """A text for one line of any terminal; a path may have any bytes."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _place(distribution: Distribution) -> str:
    place = getattr(distribution, "_path", None)
    return f"{type(distribution).__qualname__} {id(distribution)}" if place is None else os.path.abspath(str(place))


def _read(distribution: Distribution, place: str, fully: bool) -> Installed:
    """A distribution, or what is wrong with it: whatever is in its files, this does not raise.

    Args:
        fully: read its version even where it has no entry points of miniformer.
    """
    name = os.path.basename(place)
    try:
        if name.startswith("~"):
            raise ValueError(f"{place}: left over from an installation that was interrupted; remove it")
        if os.path.islink(place) and not os.path.exists(place):
            raise ValueError(f"{place}: a link to nothing")
        points = _entry_points(distribution, place)
        fully = fully or bool(points)
        text = _headers(distribution, place, -1 if fully else HEAD)
        if not fully and "Name:" not in text:
            text = _headers(distribution, place, -1)
        headers = dict(HEADER.findall(text))
        for field in ("Name", "Version") if fully else ("Name",):
            if field not in headers:
                raise ValueError(f"{place}: no {field} in its metadata")
        requires = REQUIRES.findall(text) if points else []
        if points and place.endswith(".egg-info"):  # it may have them in a file of their own
            requires = list(distribution.requires or ())
        return Installed(normalise_distribution(headers["Name"]), headers.get("Version", "?"), place, points, tuple(requires))
    except Exception as error:
        problem = str(error) if type(error) is ValueError else f"{place}: {in_one_line(error)}"
        return Installed(_printable(name), "?", place, problem=_printable(problem))


def _entry_points(distribution: Distribution, place: str) -> tuple[EntryPoint, ...]:
    """The entry points in groups of miniformer; the whole file is checked, since `importlib.metadata` reads all of it."""
    text, group = _text(distribution, place, "entry_points.txt"), ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line.startswith("[") and line.endswith("]"):
            group = line
        elif line and not line.startswith("#") and not (group and "=" in line and line.replace("\t", " ").isprintable()):
            where = os.path.join(place, "entry_points.txt")
            raise ValueError(f"{where}, line {number}: expected `name = module:attribute` below a `[group]`; "
                             f"found {line!r:.60}")
    points = distribution.entry_points if f"[{GROUPS}" in text else ()
    return tuple(point for point in points if point.group.startswith(GROUPS))


def _headers(distribution: Distribution, place: str, most: int) -> str:
    """The text in which name and version are: of `METADATA`, of `PKG-INFO`, or of an old `.egg-info` that is a file."""
    for file in ("METADATA", "PKG-INFO", "") if os.path.isfile(place) else ("METADATA", "PKG-INFO"):
        if text := _text(distribution, place, file, most):
            return ("\n" + text.replace("\r\n", "\n")).partition("\n\n")[0]  # what is below an empty line is the description
    raise ValueError(f"{place}: no METADATA in it, or an empty one")


def _text(distribution: Distribution, place: str, file: str, most: int = -1) -> str:
    """The text of a file of the metadata, or its first bytes; "" if there is no such file.

    Raises:
        ValueError: with the path of a file that is there and cannot be read.
    """
    path = os.path.join(place, file) if file else place
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}; expected a text file")
        with open(path, "rb") as opened:
            return codecs.getincrementaldecoder("utf-8")().decode(opened.read(most), final=most < 0)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise ValueError(f"{path}: a link to nothing") from None
        return "" if os.path.exists(place) else distribution.read_text(file) or ""  # it may be in an archive
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
