"""`miniformer train`: flags, config file and defaults made into one `TrainConfig`, then the run, then what it reached.

Flags come from the fields of `TrainConfig` and `TransformerConfig`. Defaults are overruled by the config file, that by
flags; among flags, `--model-config` by those of single fields, and those by `--set`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from miniformer.config.model_config import KIND_OF, TransformerConfig
from miniformer.data.jsonl import STDIN, check_file, named
from miniformer.data.stdlib import NAME
from miniformer.kernel.errors import SpecError, UserError, did_you_mean
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec
from miniformer.train.processes import is_first, launched
from miniformer.train.train_config import TrainConfig

RUN_SLOTS = ("task", "optimizer", "scheduler")
MODEL_SLOTS = ("attention", "position", "ffn", "norm", "cross_attention", "head")
NOT_FLAGS = {"architecture", "extensions", "layers", "bos_id", "eos_id"}
MODEL_SHORTHANDS: dict[str, tuple[type, str]] = {
    "activation": (str, "short for --ffn, such as gelu, relu or swiglu"),
    "rotary_pct": (float, "short for --position rope with pct"),
    "pre_norm": (bool, "short for --norm-placement pre, or with --no-pre-norm post"),
}


def flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `train`, from the fields of the specs."""
    for name, (kind, text) in reversed(MODEL_SHORTHANDS.items()):
        flag = f"{_flag(name)}/--no-{name.replace('_', '-')}" if kind is bool else _flag(name)
        command = click.option(flag, f"model_{name}", type=kind, default=None, help=f"Model: {text}.")(command)
    for prefix, model in (("model", TransformerConfig), ("run", TrainConfig)):
        for name, field in reversed(model.model_fields.items()):
            if name not in NOT_FLAGS:
                command = _option(prefix, name, field)(command)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(prefix: str, name: str, field: FieldInfo) -> Callable[..., Any]:
    """The click option of a field. Its value is checked by the spec, whose messages say more than click's."""
    default = field.default.name if isinstance(field.default, ComponentSpec) else field.default
    text = f"{'Model' if prefix == 'model' else 'Run'}: {field.description}."
    if default is not None and name not in (*MODEL_SLOTS, "d_ff"):
        text += f"  [default: {default}]"
    if field.annotation is bool:
        return click.option(f"{_flag(name)}/--no-{name.replace('_', '-')}", f"{prefix}_{name}", default=None, help=text)
    metavar = "NAME" if name in (*MODEL_SLOTS, *RUN_SLOTS) else "VALUE"
    return click.option(_flag(name), f"{prefix}_{name}", metavar=metavar, help=text)


@click.command("train", context_settings={"token_normalize_func": lambda token: token.replace("_", "-"),
                                          "max_content_width": 120})
@click.option("--config", "config_file", type=click.Path(), help="YAML or JSON file with fields of TrainConfig.")
@click.option("--model-config", metavar="JSON", help="Fields of TransformerConfig, as a JSON object.")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE",
              help="Any option, such as attention.n_kv_heads=2 or scheduler.floor=0; may be repeated.")
@click.option("--with", "extensions", multiple=True, metavar="NAME", help="Activate an extension; may be repeated.")
@flags
@click.pass_context
def command(context: click.Context, /, config_file: str | None, model_config: str | None, settings: tuple[str, ...],
            extensions: tuple[str, ...], **values: Any) -> None:
    """Train a model and leave a run folder.

    Without any option: a small causal language model on the source of Python's standard library, in a few minutes.
    """
    given = {name: value for name, value in values.items()
             if context.get_parameter_source(name) is not ParameterSource.DEFAULT and value is not None}
    config = merged(config_file, model_config, given, settings, extensions)
    _check_files(config)
    first = is_first()
    if first:
        click.echo(f"reading {named(config.train_path)}")  # before seconds of imports

    from rich.console import Console

    from miniformer.cli.shared.run_report import report
    from miniformer.train.trainer import train

    console = Console(soft_wrap=True)
    result = train(config, console=console)
    if first:
        report(console, result)


def merged(config_file: str | None, model_config: str | None, given: Mapping[str, Any], settings: tuple[str, ...] = (),
           extensions: tuple[str, ...] = ()) -> TrainConfig:
    """One config from a file and flags.

    Args:
        config_file: path of a YAML or JSON file.
        model_config: JSON object.
        given: flags as `run_<field>` or `model_<field>`.
        settings: `path=value` pairs.
        extensions: names to activate.

    Raises:
        UserError: naming the file, flag or field.
    """
    data = _read_file(config_file) if config_file else {}
    file = copy.deepcopy(data)
    model = _mapping(data.pop("model_config", None), f"{config_file}: model_config")
    if model_config is not None:
        model.update(_json_object("--model-config", model_config))
    for name, value in given.items():
        target, field = (model if name.startswith("model_") else data), name.partition("_")[2]
        target[field] = _replaced(target.get(field), value) if field in (*MODEL_SLOTS, *RUN_SLOTS) else _given(value)
    for setting in settings:
        _set(data, model, setting)
    if extensions:
        active = _mapping(data.get("extensions"), f"{config_file}: extensions")
        data["extensions"] = active | {name: active.get(name) or {} for name in extensions}
    try:
        return _checked({**data, "model_config": model})
    except UserError:
        if config_file:
            _blame(config_file, file)
        raise


def _checked(fields: Mapping[str, Any]) -> TrainConfig:
    """The config of some fields, before anything heavy is imported."""
    config = TrainConfig.model_validate(fields)
    _check_names(config)
    return config


def _blame(config_file: str, fields: Mapping[str, Any]) -> None:
    """Name the file where it is wrong by itself, and not what was said on the command line."""
    try:
        _checked(fields)
    except UserError as error:
        raise type(error)(f"{config_file}: {error}") from None


def _replaced(old: Any, name: str) -> Any:
    """A slot named on the command line: it keeps the file's options if it names the same component."""
    return old if isinstance(old, Mapping) and old.get("name") == name else name


def _given(value: Any) -> Any:
    """A value from the command line, whose type the specs know; `none` unsets."""
    return None if value == "none" else value


def _read_file(path: str) -> dict[str, Any]:
    from miniformer.data.yaml_file import read_fields  # it imports yaml, which most runs do without

    return read_fields(path)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping that may be left out."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping of fields; found {value!r}")
    return dict(value or {})


def _json_object(where: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}; found {text[:80]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a JSON object; found {text[:80]}")
    return data


def _set(data: dict[str, Any], model: dict[str, Any], setting: str) -> None:
    """Put one `path=value` where it belongs: a run's field, a model's field, or an option of a component."""
    path, equals, text = setting.partition("=")
    names = path.strip().replace("-", "_").split(".")
    if not equals:
        raise UserError(f"--set {setting}: expected PATH=VALUE, such as attention.n_kv_heads=2")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if names[0] == "model_config":
        names = names[1:]
    run_fields = {field.alias or name for name, field in TrainConfig.model_fields.items()}
    if names[:1] == ["extensions"] and len(names) > 1:
        names = ["extensions", names[1].replace("_", "-"), *names[2:]]
    target = data if names and names[0] in run_fields else model
    if not names or (target is model and names[0] not in TransformerConfig.model_fields):
        known = sorted({*run_fields, *TransformerConfig.model_fields})
        first = names[0] if names else path
        raise UserError(f"--set {path}: there is no {first!r}{did_you_mean(first, known)}")
    for place, name in enumerate(names[:-1]):
        old = target.get(name)
        if isinstance(old, str):
            old = {"name": old}
        elif old is None and place == 0 and name in (*MODEL_SLOTS, *RUN_SLOTS):
            old = {"name": _default_of(name)}
        target[name] = _mapping(old, f"--set {path}: in {'.'.join(names[:place + 1])}")
        target = target[name]
    target[names[-1]] = value


def _default_of(slot: str) -> str:
    from miniformer.config.model_config import DEFAULTS

    if slot in DEFAULTS:
        return DEFAULTS[slot]
    if slot == "head":
        raise UserError("--set head...: name the head too, such as --head classification")
    default: ComponentSpec = TrainConfig.model_fields[slot].default
    return default.name


def _check_names(config: TrainConfig) -> None:
    """Look up the model's names and fields before anything heavy is imported."""
    registry = current_registry()
    for name, value in config.architecture.items():
        if name in MODEL_SLOTS:
            component = value.get("name") if isinstance(value, Mapping) else value
            if isinstance(component, str):
                registry.find(KIND_OF.get(name, name), component)
        elif name not in TransformerConfig.model_fields and name not in MODEL_SHORTHANDS:
            known = [*TransformerConfig.model_fields, *MODEL_SHORTHANDS]
            raise SpecError(f"model_config.{name}: there is no {name!r} here{did_you_mean(name, known)}")


def _check_files(config: TrainConfig) -> None:
    """Refuse files that cannot be read, and to read standard input twice."""
    val_path = None if config.val_path == config.train_path else config.val_path  # the same records are read once
    paths = [path for path in (config.train_path, val_path, config.test_path) if path not in (None, NAME)]
    if (times := sum(Path(path) == STDIN for path in paths)) > 1:
        raise UserError(f"standard input can be read once, and is given {times} times; give a file for the others")
    if times and launched() not in (None, (1, 1)):
        raise UserError("standard input can be read by one process alone; give a file to a run of several")
    for path in paths:
        check_file(Path(path))
