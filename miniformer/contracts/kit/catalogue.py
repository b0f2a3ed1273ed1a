"""What there is to check, read from the source of the promises: listing properties and typos in their names import no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import SpecError, did_you_mean
from miniformer.kernel.kinds import KINDS

from .properties import ABILITIES, ABILITIES_PROMISE, PROMISE_MODULES, parts_of

KIT = Path(__file__).parent


@dataclass(frozen=True)
class Listed:
    """A property as it is listed.

    Attributes:
        name: its name.
        kinds: the kinds that promise it.
        promise: the promise in words.
        consequence: the damage that a broken promise does in training.
        thorough: whether only a thorough check includes it.
        note: whether a broken promise is a note instead of a failure.
    """

    name: str
    kinds: frozenset[str]
    promise: str
    consequence: str = ""
    thorough: bool = False
    note: bool = False


def listed(kind: str) -> list[Listed]:
    """The properties of a kind, in the order of reports."""
    return [prop for prop in _everything() if kind in prop.kinds]


def chosen(names: Sequence[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """The properties that `names` mean, spelt as they are in reports; each is one of a kind in `kinds`.

    Raises:
        SpecError: there is none of that name; the text says which are near, or which kind has it.
    """
    kinds = list(dict.fromkeys(kinds))
    known = [prop.name for prop in _everything() if prop.kinds & set(kinds)]
    wanted = [name.strip().lower().replace("_", "-") for name in names]
    for name in wanted:
        if name not in known:
            of_others = [kind for kind in KINDS if name in (prop.name for prop in listed(kind))]
            hint = f"; it is one of {', '.join(of_others)}" if of_others else did_you_mean(name, known)
            raise SpecError(f"there is no property {name!r} of {' or '.join(kinds)}{hint}; "
                            f"`miniformer check --list{f' {kinds[0]}' if len(kinds) == 1 else ''}` lists them")
    return tuple(dict.fromkeys(wanted))


@cache
def _everything() -> tuple[Listed, ...]:
    shared = {"KINDS": tuple(KINDS), **_tuples(_tree(KIT / "module_runner.py"))}
    properties = [prop for module in PROMISE_MODULES for prop in _in_module(KIT.parent / "promises" / f"{module}.py", shared)]
    return (*properties, Listed(ABILITIES, frozenset(KINDS), ABILITIES_PROMISE))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tuples(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """The constants of a module that are tuples of texts, such as a list of kinds."""
    return {target.id: tuple(str(item.value) for item in node.value.elts if isinstance(item, ast.Constant))
            for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
            for target in node.targets if isinstance(target, ast.Name)}


def _in_module(path: Path, shared: Mapping[str, tuple[str, ...]]) -> list[Listed]:
    """The functions of a module that are decorated with `@contract`, in their order."""
    tree = _tree(path)
    names, properties = {**shared, **_tuples(tree)}, []
    for node in tree.body:
        call = next((d for d in getattr(node, "decorator_list", ()) if isinstance(d, ast.Call)
                     and isinstance(d.func, ast.Name) and d.func.id == "contract"), None)
        if call is not None and isinstance(node, ast.FunctionDef):
            name = node.name.replace("_", "-")
            promise, consequence, _ = parts_of(name, ast.get_docstring(node))
            flags: dict[str, Any] = {k.arg: k.value.value for k in call.keywords
                                     if k.arg in ("thorough", "note") and isinstance(k.value, ast.Constant)}
            properties.append(Listed(name, _kinds(call, names), promise, consequence, **flags))
    return properties


def _kinds(call: ast.Call, names: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """The kinds that `@contract` is called with: texts, and tuples of texts by their name."""
    kinds: list[str] = []
    for argument in call.args:
        if isinstance(argument, ast.Constant):
            kinds.append(str(argument.value))
        elif isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Name):
            kinds += names[argument.value.id]
        else:
            raise TypeError(f"the kinds of a property are written as texts or *NAME; found {ast.unparse(argument)}")
    return frozenset(kinds)
