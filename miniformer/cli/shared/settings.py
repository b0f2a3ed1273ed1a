"""Fields set by path: the one way in which files, `--model-config`, the flags of fields and `--set` put values into a spec.

A path leads from the fields of a run to a value: `("lr",)`, `("model_config", "d_model")`, or, inside a component,
`("model_config", "attention", "window")`. What is set later overrules what was set before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miniformer.config.slots import MODEL_SLOTS, RUN_SLOTS, SLOTS, ComponentSlot, component_name
from miniformer.data.jsonl import JSON
from miniformer.kernel.errors import UserError, did_you_mean
from miniformer.kernel.registry import canonical, current_registry
from miniformer.train.train_config import MODEL_FIELDS, TrainConfig

Path = tuple[str, ...]

RUN_FIELDS = tuple(field.alias or name for name, field in TrainConfig.model_fields.items())


def apply(fields: dict[str, Any], path: Path, text: str | bool | float, source: str) -> None:
    """Set the value at a path to what a text of the command line stands for, in place.

    Args:
        fields: of a run; some may be missing.
        text: it may also be a value that click has read already.
        source: where the text was written, such as `--set lr`, for errors.

    Raises:
        UserError: something on the way has no fields, or the text is no JSON object where one is expected.
    """
    put(fields, path, _read(path, text, source) if isinstance(text, str) else text, source)


def put(fields: dict[str, Any], path: Path, value: Any, source: str) -> None:
    """Set the value at a path, in place; the value is data, as a file has it.

    Groups of fields (`model_config`, `extensions`, one extension) keep the entries that `value` does not have. A slot that is
    set to the component that it has keeps the options of that component.

    Raises:
        UserError: something on the way has no fields, or a group is no mapping.
    """
    *way, last = path
    for depth, name in enumerate(way, start=1):
        fields[name] = _opened(fields.get(name), path[:depth], source)
        fields = fields[name]
    old = fields.get(last)
    if _is_group(path):
        value = {**_mapping(old, source), **_mapping(value, source)}
    elif isinstance(old, Mapping) and isinstance(value, str) and _is_field(path):
        name_there = component_name(old)
        if name_there is not None and canonical(name_there) == canonical(value):
            return
    fields[last] = value


def path_of(text: str, source: str, extensions: Any = None) -> Path:
    """The full path that a short one means: `d_model` is a field of the model, `attention.window` an option of its attention.

    `ema.decay` is an option of the extension `ema` if that is active and no field has its name.

    Args:
        text: the short path.
        source: where it was written, for errors.
        extensions: the field `extensions` of the run, whose keys are the active ones.

    Raises:
        UserError: neither the run nor its model has a field of that name.
    """
    names = tuple(text.strip().replace("-", "_").split("."))
    if names[0] == "extensions" and len(names) > 1:
        return "extensions", active_name(names[1], extensions) or canonical(names[1]), *names[2:]
    if names[0] in RUN_FIELDS and names[0] != "model_config":
        return names
    in_model = names[1:] if names[0] == "model_config" else names
    if not in_model or in_model[0] in MODEL_FIELDS:
        return "model_config", *in_model
    if in_model == names and (extension := active_name(names[0], extensions)):
        return "extensions", extension, *names[1:]
    fields = MODEL_FIELDS if in_model != names else sorted({*RUN_FIELDS, *MODEL_FIELDS})
    hint = _inactive(names[0]) or did_you_mean(in_model[0], fields, settings=True)
    raise UserError(f"{source}: there is no {in_model[0]!r}{hint}")


def active_name(name: str, extensions: Any) -> str | None:
    """The active extension that a short or qualified name means, as it is named among `extensions`; None if it is not there."""
    wanted = canonical(name)
    names = {active: canonical(active) for active in extensions} if isinstance(extensions, Mapping) else {}
    exact = [active for active, full in names.items() if full == wanted]
    # a short name on one side may mean the qualified one on the other
    alike = [active for active, full in names.items() if full.endswith(f":{wanted}") or wanted.endswith(f":{full}")]
    return exact[0] if exact else alike[0] if len(alike) == 1 else None


def _inactive(name: str) -> str:
    """The hint for the name of an extension that is installed and not active; else ""."""
    wanted = canonical(name)
    if any(wanted in (entry.name, entry.qualified) for entry in current_registry().entries("extension")):
        return f"; the extension {wanted} is not active; to activate it: --with {wanted}"
    return ""


def split_setting(setting: str, expected: str) -> tuple[str, str]:
    """The name or path, and the text, of a setting such as `attention.window=4`.

    Raises:
        UserError: there is no name, or no equals sign; `expected` says what should be there.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {setting}: expected {expected}")
    return path.strip(), text


def _read(path: Path, text: str, source: str) -> Any:
    """The value that a text stands for at a path.

    The spec reads the text of a field by the field's type, so `--experiment-name 5` stays a text. The type of a component's
    option is not known before the component is imported, so its text is read as JSON where it can be.
    """
    try:
        value = JSON.decode(text)
    except (ValueError, RecursionError) as error:
        if _is_group(path):
            raise UserError(f"{source}: not JSON: {error}; found {text[:80]}") from None
        unset = text == "none" and _is_field(path) and _slot(path) is None  # `none` is also the name of a component
        return None if unset else text
    if _is_group(path) and not isinstance(value, dict):
        raise UserError(f"{source}: expected a JSON object; found {text[:80]}")
    return text if _is_field(path) and isinstance(value, int | float) else value


def _opened(value: Any, path: Path, source: str) -> dict[str, Any]:
    """The mapping that is entered on the way to a value: a copy of the fields or options that are there."""
    slot = _slot(path)
    if isinstance(value, str) and (slot is not None or not (_is_field(path) or _is_group(path))):
        return {"name": value}
    if value is None and slot is not None and _is_field(path):
        if slot.default is None:
            raise UserError(f"{source}: name the {slot.name} too, such as --{slot.name} classification")
        return {"name": slot.default}
    return _mapping(value, f"{source}: in {'.'.join(path).removeprefix('model_config.')}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A copy of a mapping; an empty one for None."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping of fields; found {value!r}")
    return dict(value or {})


def _is_group(path: Path) -> bool:
    return path == ("model_config",) or (path[0] == "extensions" and len(path) <= 2)


def _is_field(path: Path) -> bool:
    """Whether the path leads to a field of the run or of its model, and not to an option of a component."""
    return not _is_group(path) and len(path) == (2 if path[0] == "model_config" else 1)


def _slot(path: Path) -> ComponentSlot | None:
    """The slot that the path leads to or into; None where there is no slot on the way."""
    names, slots = (path[1:], MODEL_SLOTS) if path[0] == "model_config" else (path, RUN_SLOTS)
    return SLOTS[names[0]] if names and names[0] in slots else None
