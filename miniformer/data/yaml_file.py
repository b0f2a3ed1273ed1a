"""Reads the YAML and JSON files that describe a run or a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from miniformer.kernel.errors import UserError


class Unique(yaml.SafeLoader):
    """A safe loader that refuses a field that occurs twice; YAML itself would silently use the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"field {key.value!r} occurs twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_fields(path: str | Path) -> dict[str, Any]:
    """The fields of a YAML or JSON file.

    Raises:
        UserError: the file cannot be read, or holds no mapping of fields. The message names the file and, for broken YAML,
            the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8: byte 0x{error.object[error.start]:02x} at byte "
                        f"{error.start + 1}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        data = yaml.load(text, Unique)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place, column = ("", "") if mark is None else (f":{mark.line + 1}", f" at column {mark.column + 1}")
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{path}{place}: not YAML: {reason}{column}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a bad character, an impossible date, too deep a nesting
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, Mapping):
        kind = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: expected a mapping of fields; found {kind}")
    return dict(data)
