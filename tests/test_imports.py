"""Imports run downwards only, from the command line to the kernel."""

import ast
from pathlib import Path

import pytest

import miniformer

PACKAGE = Path(miniformer.__file__).parent
FLOORS = [{"kernel"}, {"config", "ops"}, {"checkpoint"}, {"decoding"}, {"model", "visualization"}, {"data"}, {"tasks"},
          {"train", "inference"}, {"contracts", "bench"}, {"cli"}]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.glob("*/**/*.py"))


def imports(path: Path, tree: ast.AST) -> set[str]:
    """The rooms that a file imports, in functions and under TYPE_CHECKING too; not where it runs as a program."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(PACKAGE.parent).parts[:-node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        else:
            found |= imports(path, node)
    return found


def rooms(names: set[str]) -> set[str]:
    return {parts[1] for parts in (name.split(".") for name in names) if parts[0] == "miniformer" and len(parts) > 1}


def may_import(room: str, other: str) -> bool:
    return room == other or FLOOR[other] < FLOOR[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_itself_and_what_lies_below(path):
    room = path.relative_to(PACKAGE).parts[0]
    found = rooms(imports(path, ast.parse(path.read_text(encoding="utf-8")))) & {p.name for p in PACKAGE.iterdir()}
    assert {other for other in found if not may_import(room, other)} == set()


def test_every_room_has_its_floor():
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} <= FLOOR.keys()


@pytest.mark.parametrize(("code", "found"), [
    ("import miniformer.train", {"train"}),
    ("from miniformer.train import x", {"train"}),
    ("from miniformer import train", {"train"}),
    ("from ..train import x", {"train"}),
    ("from .. import train", {"train"}),
    ("from . import masks", {"kernel"}),
    ("def f():\n  from ..train import x", {"train"}),
    ("if TYPE_CHECKING:\n  from ..train import x", {"train"}),
    ("if __name__ == '__main__':\n  from ..train import x", set()),
    ("import torch", set()),
])
def test_the_rule_sees_every_form_of_import(code, found):
    assert rooms(imports(PACKAGE / "kernel" / "layout.py", ast.parse(code))) == found
