"""The embedded corpus: the standard library of the running Python. It is real text and code that needs no download.

Left out are tests, generated tables, and packages that newer Pythons no longer have.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import textwrap
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from miniformer.kernel.errors import DataError

NAME = "stdlib"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "idlelib",
            "lib2to3", "distutils"}


def sources() -> Iterator[tuple[str, str]]:
    """The path (relative to the library) and the text of each source file, sorted by path.

    Raises:
        DataError: this Python comes without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    usable = sorted(path.relative_to(root) for path in _paths(root))
    if not usable:
        raise DataError(f"{NAME}: this Python has no sources of its standard library at {root}; give --train-path")
    for path in usable:
        try:
            yield path.as_posix(), (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # a few old files are in another encoding
            continue


def _paths(root: Path) -> Iterator[Path]:
    """The source files below a folder. Folders that are left out are not read; one of them may hold all installed packages."""
    for folder, folders, files in os.walk(root):
        at_top = Path(folder) == root
        folders[:] = [name for name in folders if name not in LEFT_OUT and not (at_top and name.startswith("config-"))]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def docstrings() -> Iterator[tuple[str, str, str]]:
    """The path, package and first paragraph of each docstring, in packages that have at least 60 of them."""
    # a package is a label of the embedded classification data, and a rare label cannot be learnt
    for package, files in groupby(sources(), key=lambda source: Path(source[0]).parts[0].removesuffix(".py")):
        documented = [(path, package, text) for path, source in files for text in _paragraphs(source)]
        yield from documented if len(documented) >= 60 else ()


def functions(longest: int = 400) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Place (`path:line`), syntax tree and source, without docstring, of each function of at most `longest` characters."""
    for path, source in sources():
        lines = source.splitlines(keepends=True)
        for node in _functions(source):
            first, last = node.lineno - 1, node.end_lineno
            has_docstring = ast.get_docstring(node, clean=False) is not None
            if has_docstring and len(node.body) == 1:  # nothing would be left
                continue
            start, stop = (node.body[0].lineno - 1, node.body[0].end_lineno) if has_docstring else (first, first)
            text = textwrap.dedent("".join(lines[first:start] + lines[stop:last]))
            # a string of several lines that begins at the margin keeps `dedent` from removing the indentation
            if text and len(text) <= longest and not text[0].isspace():
                yield f"{path}:{node.lineno}", node, text


def described() -> Iterator[tuple[str, str, str]]:
    """The place, name and first docstring paragraph of each function; names that Python gives, as `__init__`, are left out."""
    for path, source in sources():
        for node in _functions(source):
            text = _paragraph(node)
            if len(text) >= 20 and not node.name.startswith("__"):
                yield f"{path}:{node.lineno}", node.name, text


def _functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in _nodes(source) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _paragraph(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _paragraphs(source: str) -> Iterator[str]:
    for node in _nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            text = _paragraph(node)
            if len(text) >= 20:
                yield text


def _nodes(source: str) -> Iterator[ast.AST]:
    """The module and its statements, in the order of `ast.walk`. Expressions, which most nodes are, hold no definitions."""
    try:
        nodes: deque[ast.AST] = deque([ast.parse(source)])
    except (SyntaxError, ValueError):
        return
    while nodes:
        node = nodes.popleft()
        for part in ("body", "cases", "handlers", "orelse", "finalbody"):
            nodes.extend(getattr(node, part, ()))
        yield node
