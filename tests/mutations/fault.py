"""What a fault is: one small replacement in one file of ours, from which a user would suffer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """A fault in one file, and the tests that should notice it.

    Attributes:
        name: what reports and `--only` call it.
        file: the file that it is in, below the root of the repository.
        before: the text that is replaced; it occurs once in the file.
        after: what stands in its place.
        tests: files or single tests as pytest names them, separated by spaces; a few seconds' worth.
        harm: what a user would suffer, in a phrase.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str
    harm: str

    @property
    def selection(self) -> tuple[str, ...]:
        """The tests one by one."""
        return tuple(self.tests.split())

    def problem(self, root: Path = ROOT) -> str:
        """Why the fault cannot be put into the source as it is now; "" if it can."""
        if self.before == self.after:
            return f"{self.name}: nothing is replaced"
        path = root / self.file
        if not path.is_file():
            return f"{self.name}: there is no {self.file}; name the file that holds {self.before!r} now"
        count = path.read_text(encoding="utf-8").count(self.before)
        if count != 1:
            return f"{self.name}: {self.file} has {self.before!r} {count} times; expected once"
        for test in self.selection:
            file, _, function = test.partition("[")[0].partition("::")
            if not (root / file).is_file():
                return f"{self.name}: there is no {file}; name the test that notices it now"
            if function and not re.search(rf"^def {re.escape(function)}\(", (root / file).read_text(encoding="utf-8"), re.M):
                return f"{self.name}: {file} has no {function}; name the test that notices it now"
        return ""

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it."""
        return text.replace(self.before, self.after)
