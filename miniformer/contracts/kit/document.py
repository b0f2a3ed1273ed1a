"""Writes the second half of docs/contracts.md from the docstrings of the properties.

    python -m miniformer.contracts.kit.document docs/contracts.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from miniformer.kernel.kinds import KINDS

from .properties import Property, properties_of

MARK = "<!-- generated from docstrings: python -m miniformer.contracts.kit.document docs/contracts.md -->\n"
"""The line of the page after which everything is generated."""


def document() -> str:
    """The generated half: every property once, in the order of reports, those that several kinds share first."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    sections: dict[str, list[Property]] = {}
    for kind in KINDS:
        for prop in properties_of(kind):
            kinds = [name for name in KINDS if name in prop.kinds]
            title = kinds[0] if len(kinds) == 1 else "All kinds" if kinds == list(KINDS) else f"All of {', '.join(kinds)}"
            section = sections.setdefault(title, [])
            if prop not in section:
                section.append(prop)
    for title, properties in sections.items():
        yield f"## {title[0].upper()}{title[1:]}\n"
        for prop in properties:
            yield f"### `{prop.name}`\n"
            yield f"{prop.promise}\n"
            yield f"*In training:* {prop.consequence}\n"
            if prop.seen:
                yield f"*Seen:* {prop.seen}\n"
            if notes := _notes(prop):
                yield f"{notes}\n"


def _notes(prop: Property) -> str:
    notes = []
    if prop.proves:
        notes.append(f"Proves what a class declares: {', '.join(f'`{ability}`' for ability in sorted(prop.proves))}.")
    if prop.thorough:
        notes.append("Checked with `--thorough`.")
    if prop.note:
        notes.append("Reported as a note; it is no failure.")
    return " ".join(notes)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(path.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + document(), encoding="utf-8")
