"""Imports run downwards only, from the command line to the kernel, and never in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

import miniformer

PACKAGE = Path(miniformer.__file__).parent
FLOORS = [{"kernel"}, {"config", "ops"}, {"checkpoint"}, {"decoding"}, {"model", "visualization"}, {"data"}, {"tasks"},
          {"train", "inference"}, {"contracts", "bench"}, {"cli"}]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
ROOM_FILES = [path for path in FILES if path.parent != PACKAGE]


def imports(path: Path, tree: ast.AST) -> set[str]:
    """What a file imports, in functions and under TYPE_CHECKING too; not where it runs as a program."""
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


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """The module of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def lazy_names(package: str) -> dict[str, str]:
    """For each name that a package loads when it is first used, as its stub says, the name in the module that defines it."""
    stub = MODULES[package].with_name("__init__.pyi")
    if not stub.exists():
        return {}
    return {alias.asname or alias.name: f"{package}.{node.module}.{alias.name}" for node in ast.walk(parsed(stub))
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module for alias in node.names}


def module_of(name: str) -> str | None:
    """The module of the package that an import of this name needs: the one of that name, or the one that defines it."""
    if name in MODULES:
        return name
    owner, _, attribute = name.rpartition(".")
    if owner in MODULES and MODULES[owner].name == "__init__.py" and attribute in lazy_names(owner):
        return module_of(lazy_names(owner)[attribute])
    return module_of(owner) if owner else None


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other, after Tarjan (1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for target in graph[module]:
            if target not in index:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], index[target])
        if lowest[module] == index[module]:
            group = stack[stack.index(module):]
            del stack[-len(group):]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return sorted(groups)


def test_a_room_imports_itself_and_what_lies_below():
    inside = {path.name for path in PACKAGE.iterdir()}
    wrong = {}
    for path in ROOM_FILES:
        room = path.relative_to(PACKAGE).parts[0]
        above = {other for other in rooms(imports(path, parsed(path))) & inside if not may_import(room, other)}
        if above:
            wrong[str(path.relative_to(PACKAGE))] = above
    assert wrong == {}


def test_every_room_has_its_floor():
    assert {path.relative_to(PACKAGE).parts[0] for path in ROOM_FILES} <= FLOOR.keys()


def test_no_modules_import_each_other_in_a_circle():
    """Imports in functions and under TYPE_CHECKING count: whoever reads one module of a circle has to read them all."""
    graph = {}
    for module, path in MODULES.items():
        targets = {module_of(name) for name in imports(path, parsed(path)) if name.split(".")[0] == "miniformer"}
        graph[module] = targets - {None, module}
    assert [" <-> ".join(circle) for circle in circles(graph)] == []


@pytest.mark.parametrize(("graph", "found"), [
    ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
    ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
    ({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
])
def test_the_rule_sees_circles_of_any_length(graph, found):
    assert circles(graph) == found


def test_the_rule_knows_which_module_defines_what_a_package_offers():
    assert module_of("miniformer.kernel.Layout") == "miniformer.kernel.layout"
    assert module_of("miniformer.kernel.layout") == module_of("miniformer.kernel.layout.Layout") == "miniformer.kernel.layout"


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
