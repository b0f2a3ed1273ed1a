"""Reads the YAML and JSON files that describe a run or a model. What is written there is the value that is used.

YAML 1.1, which the library reads, takes `no` for false, 010 for 8 and 1:30 for 90. Here only what JSON would read so is a
number, true, false or null; the rest is a text, which the field that it belongs to takes or refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from miniformer.kernel.errors import UserError
from miniformer.kernel.text_file import read_text

MOST_VALUES = 100_000
"""Values in a file, where one that is repeated by an anchor counts each time."""
MOST_TEXT = 2**22
"""Characters of YAML, which is read slowly. JSON may be longer."""
DEEPEST = 100
"""Brackets that may be open at a time."""
LONE_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half of a surrogate pair. Those between the two ranges are bytes of a file's name that are not UTF-8 (`os.fsdecode`)."""
MERGE = "tag:yaml.org,2002:merge"
WHOLE = "(0|[1-9][0-9]*)"
POWER = "([eE][-+]?[0-9]+)"
PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{WHOLE}|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (rf"[-+]?({WHOLE}\.[0-9]*{POWER}?|\.[0-9]+{POWER}?|{WHOLE}{POWER})|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
              list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}
"""What a text without quotes can be other than a text: a pattern for each, and the characters that it may begin with."""


class Fields(dict[str, Any]):
    """The fields of a file, and where they are from.

    Attributes:
        source: the file.
    """

    def __init__(self, fields: Mapping[str, Any], source: Path) -> None:
        super().__init__(fields)
        self.source = source


class Loader(yaml.SafeLoader):
    """A safe loader whose numbers are those of JSON, and which refuses what would silently be read as something else.

    Refused are a field that occurs twice, a name that is not a text, and anchors that contain themselves or multiply.
    """

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", MERGE):
                written = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise _error(f"the name of a field is {written or 'left out'}; expected a text, in quotes if need be", key)
            if key.value in seen and key.tag != MERGE:
                raise _error(f"field {key.value!r} occurs twice", key)
            seen.add(key.value)
        return node

    def compose_document(self) -> Any:
        node = super().compose_document()
        _count(node, {}, MOST_VALUES)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # the library trusts what a tag says
            raise _error(f"{str(node.value)[:40]!r} is not what its tag {node.tag!r} says", node) from None


for kind, (pattern, first) in PLAIN.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node), 0)


def _construct_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """A text, in which two escapes for the halves of a surrogate pair are one character, as in JSON."""
    text = str(loader.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if LONE_HALF.search(text):
        raise _error("half of a surrogate pair, which no text has", node)
    return text


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _count(node: Any, sizes: dict[int, int], most: int) -> int:
    """The number of values in a node, where one that stands there by an anchor counts each time.

    Raises:
        yaml.MarkedYAMLError: there are too many, or a node contains itself.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _error("an anchor contains itself", node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: Iterator[Any] = iter(())
    if isinstance(node, yaml.SequenceNode):
        children = iter(node.value)
    elif isinstance(node, yaml.MappingNode):
        children = (child for pair in node.value for child in pair)
    size = 1 + sum(_count(child, sizes, most) for child in children)
    if size > most:
        raise _error(f"more than {most:,} values, with those that anchors repeat", node)
    sizes[id(node)] = size
    return size


def read_fields(path: str | Path) -> Fields:
    """The fields of a YAML or JSON file.

    Raises:
        UserError: the file cannot be read, or holds no mapping of fields. The message names the file and, for broken YAML,
            the line.
    """
    path = Path(path)
    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_unique)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # then it is YAML, whose errors say better where they are
        data = _yaml(path, text, error if path.suffix == ".json" else None)
    if not isinstance(data, Mapping):
        kind = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: expected a mapping of fields; found {kind}")
    return Fields(data, path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field occurs twice")
    return fields


def _yaml(path: Path, text: str, json_error: Exception | None) -> Any:
    """The value that a text is in YAML, which is more than JSON; `json_error` is raised if the text should be JSON."""
    try:
        if len(text) > MOST_TEXT:
            raise yaml.YAMLError(f"more than {MOST_TEXT:,} characters; expected the fields of a run or a model")
        if max(accumulate((char in "[{") - (char in "]}") for char in text), default=0) > DEEPEST:
            raise RecursionError  # before the library, whose time grows with the square of the depth
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place, column = ("", "") if mark is None else (f":{mark.line + 1}", f" at column {mark.column + 1}")
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in reason:
            reason = "a tab, and YAML is indented by spaces"
    except yaml.reader.ReaderError as error:
        place, reason, column = f":{text.count(chr(10), 0, error.position) + 1}", str(error).splitlines()[0], ""
    except RecursionError:
        place, reason, column = "", "it is nested too deeply", ""
    except (yaml.YAMLError, ValueError) as error:
        place, reason, column = "", str(error).splitlines()[0], ""
    if isinstance(json_error, json.JSONDecodeError) and text.strip():
        raise UserError(f"{path}:{json_error.lineno}: not JSON: {json_error.msg.removesuffix(' at')} at column "
                        f"{json_error.colno}")
    raise UserError(f"{path}{place}: not YAML: {reason}{column}")
