"""What holds of all code: no behaviour hangs on what a component is called, and constructors stay small."""

import ast
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

files = pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))


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


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@files
def test_nothing_is_compared_with_a_component_s_name_outside_the_registry(path):
    assert path == REGISTRY or compared_names(parsed(path)) == []


@files
def test_no_constructor_has_too_many_parameters(path):
    assert {name: count for name, count in constructors(parsed(path)).items() if count > MOST_PARAMETERS} == {}


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
