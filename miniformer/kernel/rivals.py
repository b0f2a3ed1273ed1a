"""Which of several metadata of one distribution counts: the one that describes the code that Python would import.

An upgrade that was interrupted, or two folders on the path, leave more than one. Nothing is imported to find out.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from .entries import Installed


def imported_of(rivals: Sequence[Installed], path: Sequence[str] | None = None) -> Installed:
    """The one of several metadata of a distribution that describes the code that Python would import.

    It is the one beside that code, or of an editable installation of it. Where several are, the files that it recorded when it
    was installed decide, and then the newest version. Where none is, the first folder of the path counts, as it does in
    `importlib.metadata`, and in one folder the newest version.

    Args:
        rivals: in the order of the path.
        path: folders that are searched for the code.
    """
    modules = {top for rival in rivals for top in _modules(rival)}
    places = {place for module in modules for place in _places(module, path)}
    here = [rival for rival in rivals if _is_beside(rival, places)]
    candidates = here or [rival for rival in rivals if rival.folder == rivals[0].folder]
    return max(candidates, key=lambda rival: (_fits_record(rival, modules), _version(rival.version)))


def _modules(rival: Installed) -> set[str]:
    """The packages or modules at the top that the entry points lead to; without entry points, that of the name."""
    tops = {point.value.partition(":")[0].strip().partition(".")[0] for point in rival.points}
    return {top for top in tops if top.isidentifier()} or {rival.name.replace("-", "_")}


def _places(module: str, path: Sequence[str] | None) -> set[str]:
    """The folders in which Python would find a module; none if it finds none."""
    spec: ModuleSpec | None = None
    try:
        spec = PathFinder.find_spec(module, path) or importlib.util.find_spec(module)
    except Exception:  # a finder of a third party may fail in any way
        return set()
    if spec is None:
        return set()
    folders = spec.submodule_search_locations
    found = [os.path.dirname(folder) for folder in folders] if folders else [os.path.dirname(spec.origin or "")]
    return {os.path.realpath(folder) for folder in found}


def _is_beside(rival: Installed, places: set[str]) -> bool:
    """Whether code in one of these folders is what the metadata describe."""
    if os.path.realpath(rival.folder) in places:
        return True
    try:
        origin: Any = json.loads(Path(rival.place, "direct_url.json").read_text(encoding="utf-8"))
        project = os.path.realpath(url2pathname(urlparse(origin["url"]).path))
        return bool(origin["dir_info"]["editable"]) and any(os.path.commonpath([project, place]) == project for place in places)
    except (OSError, ValueError, TypeError, KeyError):  # it is no editable installation, or does not say of what
        return False


def _fits_record(rival: Installed, modules: set[str]) -> bool:
    """Whether the Python files of these modules are those that were installed together with the metadata."""
    try:
        lines = Path(rival.place, "RECORD").read_text(encoding="utf-8").splitlines()
        rows = [row for row in csv.reader(lines) if len(row) > 1 and row[0].endswith(".py")
                and row[0].removesuffix(".py").partition("/")[0] in modules]
        return bool(rows) and all(_hash(Path(rival.folder, row[0])) == row[1] for row in rows)
    except (OSError, ValueError, csv.Error):
        return False


def _hash(file: Path) -> str:
    """The hash of a file in the form of a RECORD."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")


def _version(text: str) -> Any:
    """A version that can be compared; one that is none comes before all."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text)
    except InvalidVersion:
        return Version("0.dev0")
