"""What holds of all code: no behaviour depends on what a component is called, constructors and files stay small, names good."""

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import miniformer
from miniformer.kernel import KINDS, current_registry, discover, options_of

ROOT = Path(__file__).parents[1]
PACKAGE = Path(miniformer.__file__).parent
PLUGINS = [path for path in (ROOT / "plugins").glob("*/*/**/*.py") if "tests" not in path.parts]
FILES = sorted([*PACKAGE.rglob("*.py"), *PLUGINS])
REGISTRY = PACKAGE / "kernel" / "registry.py"
MOST_PARAMETERS = 12
NAMES = {entry.name for entry in discover()} - {"none"}
"""What components are called. `none` is left out: options, flags and variables of the environment say it for nothing at all."""

MOST_LINES = 300
RENAMED = PACKAGE / "kernel" / "renamed.py"
"""The one file that may name what had another name in the version before."""
OLD_MODULES = {"hearing", "attending", "tasking", "running", "every", "probe", "subject", "given", "reached", "elsewhere",
               "covering", "channel"}
OLD_NAMES = {"loading.checked", "loading.opened", "specs.resolved", "registry.welcome", "registry.normal", "kinds.known",
             "registry.State", "Context.reading", "Layout.then", "Layout.beside", "Layout.following",
             "PositionEncoding.prepare", "State.static", "masks.prepare", "prepare.prepare",
             "conformance.fault", "options.misfit"}
"""What a module or a class no longer defines."""
OLD_MEMBERS = {"reach", "shortest", "stepped", "stands_for", "breaks"}
"""What no class defines any more, as components of others did too."""


def compared_names(tree: ast.Module) -> list[str]:
    """Comparisons with a component's name, written there or as a constant of the module, and choices by one."""
    constants = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)}

    def named(node: ast.AST) -> bool:
        """Whether the node is a component's name, or a tuple, list or set of some."""
        if isinstance(node, ast.Name):
            node = constants.get(node.id, node)
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return any(map(named, node.elts))
        return isinstance(node, ast.Constant) and node.value in NAMES

    found = []
    for node in ast.walk(tree):
        if ((isinstance(node, ast.Compare) and any(map(named, [node.left, *node.comparators])))
                or (isinstance(node, ast.match_case) and any(map(named, ast.walk(node.pattern))))
                or (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict)
                    and any(map(named, filter(None, node.value.keys))))
                or (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                    and node.func.attr in ("startswith", "endswith") and any(map(named, node.args)))):
            found.append(ast.unparse(node))
    return found


def constructors(tree: ast.Module) -> dict[str, int]:
    """Parameters of each class's constructor, without `self`."""
    found = {}
    for owner in ast.walk(tree):
        for node in owner.body if isinstance(owner, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                found[owner.name] = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(module: str, tree: ast.Module) -> set[tuple[str, str, bool]]:
    """What a module and its classes define: who defines it, its name, and whether that is a class."""
    found = set()
    for owner in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
        is_class = isinstance(owner, ast.ClassDef)
        for node in owner.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.append(node.name)
            found |= {(owner.name if is_class else module, name, is_class) for name in names}
    return found


def old_names(path: Path, tree: ast.Module) -> list[str]:
    """Names that style has better ones for: of the module, and of what it defines."""
    found = [path.stem] if path.stem in OLD_MODULES else []
    for owner, name, is_class in definitions(path.stem, tree):
        if f"{owner}.{name}" in OLD_NAMES or (is_class and name in OLD_MEMBERS):
            found.append(f"{owner}.{name}")
    return sorted(found)


def leaning_docstrings(tree: ast.Module) -> list[str]:
    """Docstrings that cannot be read without the one before."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    return [text.splitlines()[0] for text in docstrings if re.match(r"The same\b", text)]


def everywhere(rule: Callable[[Path], object]) -> dict[str, object]:
    """What a rule finds in each file in which it finds something."""
    found = {path.relative_to(PACKAGE.parent if PACKAGE in path.parents else ROOT): rule(path) for path in FILES}
    return {path.as_posix(): result for path, result in found.items() if result}


def test_nothing_is_compared_with_a_component_s_name_outside_the_registry():
    assert everywhere(lambda path: path != REGISTRY and compared_names(parsed(path))) == {}


def test_no_constructor_has_too_many_parameters():
    assert everywhere(lambda path: {
        name: count for name, count in constructors(parsed(path)).items() if count > MOST_PARAMETERS}) == {}


def test_no_file_of_the_package_is_too_long():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_every_docstring_stands_alone():
    assert everywhere(lambda path: leaning_docstrings(parsed(path))) == {}


def test_no_old_name_is_left():
    assert everywhere(lambda path: path != RENAMED and old_names(path, parsed(path))) == {}


def test_no_component_has_too_many_sizes_and_options():
    registry = current_registry()
    for entry in (entry for entry in registry.entries() if entry.distribution == "miniformer"):
        options = options_of(registry.load(entry.kind, entry.name)).model_fields
        assert len(KINDS[entry.kind].sizes) + len(options) <= MOST_PARAMETERS, entry.name


@pytest.mark.parametrize("code", [
    "x == 'swiglu'",
    "'mha' != x",
    "x in ('rope', 'other')",
    "x not in {'gelu'}",
    "NAME = 'mha'\nx == NAME",
    "NAMES = ('mha', 'mla')\nif spec.name in NAMES: pass",
    "match x:\n  case 'alibi' | 'rope': pass",
    "{'swiglu': f, 'gelu': g}[x]",
    "x.startswith('rope')",
])
def test_the_rule_sees_every_form_of_comparison(code):
    assert len(compared_names(ast.parse(code))) == 1


@pytest.mark.parametrize("code", ["x == 'pre'", "f('swiglu')", "x = 'mha'", "x == y", "{'swiglu': 1}", "x == 'none'"])
def test_the_rule_lets_names_be_used_otherwise(code):
    assert compared_names(ast.parse(code)) == []


def test_the_rule_counts_what_a_constructor_takes():
    code = "class A:\n  def __init__(self, a, /, b, *c, d=1, **e): pass\n  def f(self, a): pass\nclass B: pass"
    assert constructors(ast.parse(code)) == {"A": 3}


@pytest.mark.parametrize(("code", "found"), [
    ("def welcome(): pass", ["registry.welcome"]), ("class State: pass", ["registry.State"]),
    ("class Layout:\n  def then(self): pass", ["Layout.then"]), ("class Mine:\n  breaks: dict = {}", ["Mine.breaks"]),
    ("class Mine:\n  reach = 3", ["Mine.reach"]), ("reach = 3\ndef static(): pass", []), ("class Mine:\n  then = 3", []),
])
def test_the_rule_sees_old_names(code, found):
    assert old_names(REGISTRY, ast.parse(code)) == found
    assert old_names(PACKAGE / "contracts" / "hearing.py", ast.parse("")) == ["hearing"]


@pytest.mark.parametrize(("code", "found"), [
    ('def f():\n  """The same, faster."""', ["The same, faster."]), ('class A:\n  """The same.\n\n  More."""', ["The same."]),
    ('"""The sameness of things."""', []), ('def f():\n  """Does the same as g."""', []),
])
def test_the_rule_sees_docstrings_that_lean_on_others(code, found):
    assert leaning_docstrings(ast.parse(code)) == found
