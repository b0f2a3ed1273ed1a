"""Errors for a run or a saved model that is not where it was expected: what is there instead, and which runs there are."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from miniformer.kernel.errors import nearest

from .file_names import is_file, is_folder

RECORD, CONFIG, WEIGHTS, BEST = "run.json", "config.json", "model.safetensors", Path("checkpoints") / "best_model"
SHOWN, LOOKED_AT = 8, 500
OTHER_DATA = (".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zip", ".xlsx")


def why_no_model(path: Path) -> str:
    """Why there is no run and no saved model at `path`, and what is near."""
    try:
        if path.is_file():
            return _what_file(path) or f"a file; expected a run folder{_folder_of(path)}"
        if not path.exists():
            return f"there is no run, model or file of that name{_runs_near(path)}"
        if inside := [folder.name for folder in _runs_in(path)]:
            return f"a folder of runs; expected one of them: {_listed(sorted(inside))}"
        if (path / RECORD).is_file():
            return "a run without a model: it ended before its first measurement"
        return (f"no run and no saved model here; expected a run folder, or a folder with {CONFIG} and {WEIGHTS}"
                f"{_runs_near(path)}")
    except (OSError, ValueError) as error:  # such as too long a name
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def why_no_spec(path: Path) -> str:
    """Why no run and no model can be read from `path`, which may be a file that describes one; "" if that can be tried."""
    try:
        if not path.exists():
            return why_no_model(path)
        return _what_file(path) if path.is_file() else ""
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _what_file(path: Path) -> str:
    """What a file is, if it is data or weights; else ""."""
    if _is_json_lines(path):
        train = f"miniformer train --train-path {shlex.quote(str(path))}"
        return (f"a data file, not a run or a model; `{train}` trains on it, and `predict` and `evaluate` take it "
                "beside a run")
    if path.suffix.lower() in OTHER_DATA:
        return "a data file, not a run or a model; data is read as JSON lines, by `miniformer train --train-path FILE.jsonl`"
    if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        return f"a file of weights; expected the folder of its run{_folder_of(path)}"
    return ""


def _is_json_lines(path: Path) -> bool:
    """Whether a file has a JSON object in each line; one in all may be a file of fields."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with path.open("rb") as file:
        lines = [line for line in islice((line.strip() for line in file.readlines(2**16)), 3) if line]
    try:
        return len(lines) > 1 and all(isinstance(json.loads(line), dict) for line in lines[:2])
    except (ValueError, RecursionError):
        return False


def _folder_of(path: Path) -> str:
    """A hint at the run or the model that a file belongs to."""
    owners = [folder for folder in (path.parent, *list(path.parent.parents)[:2]) if _is_run(folder)]
    return f"; did you mean {str(owners[-1])!r}?" if owners else ""


def _is_run(folder: Path) -> bool:
    if is_folder(folder / BEST) or is_file(folder / RECORD):
        return True
    return all(is_file(folder / name) for name in (CONFIG, WEIGHTS))


def _runs_in(folder: Path) -> Iterator[Path]:
    if is_folder(folder):
        with os.scandir(folder) as entries:  # of which one may be a link to itself
            yield from (folder / entry.name for entry in islice(entries, LOOKED_AT) if is_folder(folder / entry.name)
                        and not entry.name.startswith(".") and _is_run(folder / entry.name))


def _runs_near(path: Path) -> str:
    """The runs beside `path`, in this folder and in `runs`: those with a similar name first, then the latest."""
    found: dict[Path, Path] = {}
    for place in (path.parent, Path(), Path("runs")):
        for run in _runs_in(place):
            found.setdefault(run.resolve(), run)
    if not found:
        return "; there are no runs here yet: `miniformer train` makes one"
    latest = sorted(found.values(), key=lambda run: run.stat().st_mtime, reverse=True)
    near = nearest(path.name, list(dict.fromkeys(run.name for run in latest)))
    close = [run for name in near for run in latest if run.name == name]
    others = [str(run) for run in latest if run not in close]
    return ((f"; did you mean {' or '.join(repr(str(run)) for run in close[:3])}?" if close else "")
            + (f"; {'other ' if close else ''}runs: {_listed(others)}" if others else ""))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
