"""`miniformer train`: one `TrainConfig` from defaults, a config file and flags; then the run; then a report on it.

Most flags are made from the fields of `TrainConfig` and `TransformerConfig`. The config file overrules defaults, and flags
overrule the file. Among flags, those of single fields overrule `--model-config`, and `--set` overrules both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from miniformer.checkpoint.can_make import check_can_make
from miniformer.cli.shared.output import result_is_in_a_file
from miniformer.cli.shared.settings import active_name, apply, path_of, put, split_setting
from miniformer.config.model_config import TransformerConfig
from miniformer.config.shorthands import SHORTHANDS
from miniformer.config.slots import SLOTS
from miniformer.data.jsonl import STDIN, check_file, named
from miniformer.data.stdlib import NAME
from miniformer.kernel.errors import UserError
from miniformer.kernel.registry import canonical
from miniformer.train.processes import is_first, launched
from miniformer.train.train_config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from miniformer.train.trainer import RunResult

NOT_FLAGS = {"architecture", "extensions", "layers", "bos_id", "eos_id"}
"""Fields without a flag of their own: `--model-config`, `--with` and `--set` set them."""


def flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `train`, from the fields of the specs."""
    for name, shorthand in reversed(SHORTHANDS.items()):
        option = _on_off(name) if shorthand.type is bool else _flag(name)
        help_text = f"Model: {shorthand.description}."
        command = click.option(option, f"model_{name}", type=shorthand.type, default=None, help=help_text)(command)
    for owner, spec in (("model", TransformerConfig), ("run", TrainConfig)):
        for name, field in reversed(spec.model_fields.items()):
            if name not in NOT_FLAGS:
                command = _option(owner, name, field)(command)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _on_off(name: str) -> str:
    return f"{_flag(name)}/--no-{name.replace('_', '-')}"


def _option(owner: str, name: str, field: FieldInfo) -> Callable[..., Any]:
    """The click option of a field. The spec checks its value, and its messages say more than click's."""
    default = SLOTS[name].default if name in SLOTS else field.default
    text = f"{owner.capitalize()}: {field.description}."
    if default is not None and name != "d_ff":
        text += f"  [default: {default}]"
    if field.annotation is bool:
        return click.option(_on_off(name), f"{owner}_{name}", default=None, help=text)
    return click.option(_flag(name), f"{owner}_{name}", metavar="NAME" if name in SLOTS else "VALUE", help=text)


@click.command("train", context_settings={"token_normalize_func": lambda token: token.replace("_", "-"),
                                          "max_content_width": 120})
@click.option("--config", "config_file", type=click.Path(), help="YAML or JSON file with fields of TrainConfig; or a run "
              "folder or its run.json, to make that run again.")
@click.option("--model-config", metavar="JSON", help="Fields of TransformerConfig, as a JSON object.")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE",
              help="Any field or option, such as attention.n_kv_heads=2 or scheduler.floor=0; may be repeated.")
@click.option("--with", "extensions", multiple=True, metavar="NAME", help="Activate an extension; may be repeated.")
@flags
@click.pass_context
def command(context: click.Context, /, config_file: str | None, model_config: str | None, settings: tuple[str, ...],
            extensions: tuple[str, ...], **values: Any) -> None:
    """Train a model and leave a run folder.

    Without any option: a small causal language model on the source of Python's standard library, in a few minutes. A field
    that a config file sets is cleared by VALUE none.
    """
    written = {name: value for name, value in values.items()
               if context.get_parameter_source(name) is not ParameterSource.DEFAULT and value is not None}
    config = merged(config_file, model_config, written, settings, extensions)
    _check_files(config)
    first = is_first()
    result_is_in_a_file()
    if first:
        from miniformer.train.run_name import free_folder

        free_folder(config)
        click.echo(f"reading {click.format_filename(named(config.train_path))}")  # before imports that take seconds

    from rich.console import Console

    from miniformer.cli.shared.run_report import threads
    from miniformer.train.trainer import train

    console = Console(soft_wrap=True)
    if first:
        console.print(threads(), highlight=False)
    result = train(config, console=console)
    result_is_in_a_file(is_finished=True)
    if first:
        _report(console, result)


def _report(console: Console, result: RunResult) -> None:
    """Print the report of a finished run. Whatever fails from here on gives a note, and the exit code stays that of the run."""
    from miniformer.cli.shared.run_report import report

    try:
        report(console, result)
    except (Exception, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        click.echo(f"note: the run is finished, and in {result.folder}; its report could not be shown: {reason}", err=True)


def merged(config_file: str | None, model_config: str | None, values: Mapping[str, Any], settings: tuple[str, ...] = (),
           extensions: tuple[str, ...] = ()) -> TrainConfig:
    """One config from a file and flags.

    Args:
        config_file: path of a YAML or JSON file.
        model_config: JSON object with fields of the model.
        values: of the flags of single fields, by `run_<field>` or `model_<field>`.
        settings: `path=value` pairs.
        extensions: names of extensions to activate.

    Raises:
        UserError: naming the file, the flag or the field that is wrong.
    """
    fields: dict[str, Any] = {}
    file_fields: Mapping[str, Any] = _read_file(config_file) if config_file else {}
    for name, value in file_fields.items():
        put(fields, (name,), value, f"{config_file}: {name}")
    if model_config is not None:
        apply(fields, ("model_config",), model_config, "--model-config")
    for parameter, value in values.items():
        owner, _, name = parameter.partition("_")
        apply(fields, ("model_config", name) if owner == "model" else (name,), value, _flag(name))
    for extension in extensions:
        name = active_name(extension, fields.get("extensions")) or canonical(extension)
        put(fields, ("extensions", name), {}, f"--with {extension}")
    for setting in settings:
        path, text = split_setting(setting, "PATH=VALUE, such as attention.n_kv_heads=2")
        apply(fields, path_of(path, f"--set {path}", fields.get("extensions")), text, f"--set {path}")
    try:
        return TrainConfig.model_validate(fields)
    except UserError:
        if config_file:
            _blame(file_fields)
        raise


def _blame(file_fields: Mapping[str, Any]) -> None:
    """Raise the error again with the file's name and line, if the file is wrong without the command line too."""
    from miniformer.data.field_lines import naming_lines

    with naming_lines(file_fields):
        TrainConfig.model_validate(file_fields)


def _read_file(path: str) -> Mapping[str, Any]:
    """The fields of a run in a file, or in the folder of a run that is to be made again."""
    from miniformer.train.spec_file import read_spec, run_fields  # `--help` and runs without a file need none of it

    return run_fields(read_spec(Path(path)))


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
    if config.tokenizer is not None and not Path(config.tokenizer).is_fifo():
        from miniformer.data.tokenizer import Tokenizer

        Tokenizer.load(config.tokenizer)  # before data is read, which may take long
    check_can_make(Path(config.work_dir) / "run", "--work-dir")
