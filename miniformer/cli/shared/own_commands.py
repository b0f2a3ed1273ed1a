"""miniformer's own commands, in the order in which help lists them, and what each does in a line."""

from __future__ import annotations

import ast
import os

COMMANDS = ("train", "predict", "evaluate", "generate", "chat", "inspect", "bench", "list-components", "describe", "check")
FOLDER = os.path.dirname(os.path.dirname(__file__))


def module_of(name: str) -> str:
    """The name of the module in `miniformer.cli` that has a command."""
    return name.replace("-", "_")


def summary(name: str) -> str:
    """The first line of a command's docstring.

    It is read from the source, since importing all commands to list them would take several times as long.
    """
    with open(os.path.join(FOLDER, f"{module_of(name)}.py"), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    docstrings = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "command"]
    return (docstrings[0] or "").partition("\n")[0]
