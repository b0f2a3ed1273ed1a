"""Errors about a field that stands in a file name the file and the line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from miniformer.kernel.errors import UserError
from miniformer.kernel.text_file import read_text

from .yaml_file import Fields, Loader

Place = tuple[str, ...]


@contextmanager
def naming_lines(fields: Mapping[str, Any]) -> Iterator[None]:
    """Put the file, and the line of the field if it can be found, before the errors raised here.

    Args:
        fields: what is used here, as `read_fields` has read it. Errors about other fields stay as they are.
    """
    try:
        yield
    except UserError as error:
        if not isinstance(fields, Fields) or str(error).startswith(str(fields.source)):
            raise
        raise type(error)(_located(fields, str(error))) from None


def _located(fields: Fields, message: str) -> str:
    """A message with the file and line before it; one of several faults has a line of its own."""
    places = _places(fields)
    lines = message.splitlines()
    located = [f"{fields.source}{_line(places, line)}: {line}" for line in lines[:1]]
    for line in lines[1:]:
        number = "" if line.startswith(" ") else _line(places, line)
        located.append(f"{fields.source}{number}: {line}" if number else line)
    return "\n".join(located)


def _line(places: list[tuple[Place, str, int]], message: str) -> str:
    """`:line` of the field that a message begins with, or of the value that it quotes first; "" if there is none."""
    if named := re.match(r"(?:[\w-]+ )?([\w.:-]+): ", message):
        names = tuple(named[1].split("."))
        for ending in (names[start:] for start in range(len(names))):
            for place, _, line in places:
                if place[-len(ending):] == ending:
                    return f":{line}"
    if quoted := re.search(r"'([^']+)'", message):
        for place, value, line in places:
            if quoted[1] in (value, place[-1]):
                return f":{line}"
    return ""


def _places(fields: Fields) -> list[tuple[Place, str, int]]:
    """The path of each field in the file, its value if that is no group, and its line."""
    try:
        return list(_fields_of(yaml.compose(read_text(fields.source), Loader), ()))
    except (UserError, yaml.YAMLError, ValueError, RecursionError):  # such as JSON that is indented by tabs
        return []


def _fields_of(node: Any, place: Place) -> Iterator[tuple[Place, str, int]]:
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, child) for key, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(number), child, child) for number, child in enumerate(node.value)]
    else:
        return
    for name, key, child in children:
        yield (*place, name), str(child.value) if isinstance(child, yaml.ScalarNode) else "", key.start_mark.line + 1
        yield from _fields_of(child, (*place, name))
