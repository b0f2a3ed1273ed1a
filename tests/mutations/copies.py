"""Copies of the source, in which one fault at a time is put while tests run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .fault import ROOT, Fault

COPIED = ("miniformer", "tests", "plugins", "docs", "examples", "pyproject.toml", "README.md", "CHANGELOG.md",
          "CONTRIBUTING.md")
"""What tests look at."""
LONGEST = 120
"""Seconds after which a run of tests counts as hanging."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run of tests.

    Attributes:
        code: the exit code of pytest; None: it was ended because it did not end.
        seconds: how long it took.
        output: all that it wrote.
    """

    code: int | None
    seconds: float
    output: str

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.code == 0

    @property
    def failures(self) -> list[str]:
        """The names of the tests, or files of tests, that failed."""
        lines = [line.split() for line in self.output.splitlines()]
        return [words[1] for words in lines if len(words) > 1 and words[0] in ("FAILED", "ERROR")]


class Copy:
    """A copy of the source and its tests in a folder of its own.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.root.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, self.root / name)

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """The copy with a fault in it, which is taken out afterwards."""
        path = self.root / fault.file
        healthy = path.read_text(encoding="utf-8")
        try:
            _write(path, fault.applied(healthy))
            yield
        finally:
            _write(path, healthy)

    def run(self, tests: Sequence[str], *, stop_at_first: bool, longest: float | None = LONGEST) -> Outcome:
        """Run tests on the copy, in a process that finds the package there."""
        path = [self.root, *sorted(self.root.glob("plugins/*")), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1",
                       "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"]
        if stop_at_first:
            command.append("-x")
        started = time.monotonic()
        # a session of its own, so that what the tests have started is ended with them
        process = subprocess.Popen([*command, *tests], cwd=self.root, env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=longest)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            code = None
        return Outcome(code, time.monotonic() - started, output)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    # Python tells by second and size whether a file was compiled as it is, and two writes may differ in neither
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
