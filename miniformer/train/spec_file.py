"""Spec files: the run or the model that a file describes. A file is read without torch, so that a typo is an error at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from miniformer.checkpoint.file_names import is_file, is_folder
from miniformer.checkpoint.missing import why_no_model, why_no_spec
from miniformer.checkpoint.record import RECORD
from miniformer.checkpoint.store import BEST, CONFIG
from miniformer.kernel.errors import SpecError, UserError
from miniformer.kernel.registry import Availability, current_registry

from .train_config import TrainConfig

if TYPE_CHECKING:
    from miniformer.config.model_config import TransformerConfig
    from miniformer.kernel.task import Task

T = TypeVar("T")
ONE_STACK = "transformer"


def _naming_lines(understand: Callable[[Mapping[str, Any]], T]) -> Callable[[Mapping[str, Any]], T]:
    """Let the errors about fields of a file name the file and the line."""
    @wraps(understand)
    def understood(data: Mapping[str, Any]) -> T:
        from miniformer.data.field_lines import naming_lines

        with naming_lines(data):
            return understand(data)

    return understood


def read_spec(path: Path) -> dict[str, Any]:
    """The fields in a run folder, a folder with a saved model, a `run.json`, or a YAML or JSON file.

    Raises:
        UserError: the path leads to none of these, or the file cannot be read.
    """
    if problem := why_no_spec(path):
        raise UserError(f"{path}: {problem}")
    if is_folder(path):
        files = [file for file in (path / RECORD, path / BEST / CONFIG, path / CONFIG) if is_file(file)]
        if not files:
            raise UserError(f"{path}: {why_no_model(path)}")
        path = files[0]
    from miniformer.data.yaml_file import read_fields

    return read_fields(path)


def run_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a run in a spec file, for a new run. Of what training has written, only what decides a run is taken.

    A run folder's name is its own, so that a run that is made again gets another one.
    """
    from miniformer.data.yaml_file import Fields

    trained = data.get("train")
    if isinstance(trained, Mapping):
        fields = {**trained, "experiment_name": None}
    elif isinstance(data.get("model"), Mapping):  # the config.json of a saved model
        task = {"task": data["task"]} if "task" in data else {}
        fields = {**task, "model": data.get("assembly"), "extensions": data.get("extensions"), "model_config": data["model"]}
    else:
        return data
    return Fields(fields, data.source) if isinstance(data, Fields) else fields  # so that errors name the file and the line


@_naming_lines
def model_of(data: Mapping[str, Any]) -> tuple[TransformerConfig, str]:
    """The model that the fields of a spec file describe, and the name of its assembly.

    Raises:
        UserError: no such model can be built.
    """
    from miniformer.config.model_config import TransformerConfig

    model, trained = data.get("model"), data.get("train")
    if isinstance(model, Mapping):  # a file that training or saving has written
        assembly = trained.get("model") if isinstance(trained, Mapping) else data.get("assembly")
        return TransformerConfig.model_validate(model), assembly or ONE_STACK
    if not _describes_run(data):
        fields = {name: value for name, value in data.items() if name != "model"}
        return TransformerConfig.model_validate(fields), model or ONE_STACK

    from miniformer.kernel.spec import build
    from miniformer.kernel.task import Task

    from .specs import model_class, model_spec, task_spec

    run = TrainConfig.model_validate(data)
    task = build(Task, task_spec(run))
    fields = {"vocab_size": run.tokenizer_vocab_size, **run.architecture}
    if (outputs := task.n_outputs(fields["vocab_size"])) != fields["vocab_size"]:
        fields.setdefault("output_dim", max(1, outputs))  # the number of labels is known only with the data
    return model_spec(run.with_fields(model_config=fields), task), model_class(task).assembly


@_naming_lines
def run_of(data: Mapping[str, Any]) -> TrainConfig:
    """The run that the fields of a spec file describe; for those of a model, a run of the first task that trains such a model.

    Raises:
        UserError: the run is not possible, or no task trains the model.
    """
    if isinstance(data.get("train"), Mapping) or (not isinstance(data.get("model"), Mapping) and _describes_run(data)):
        return TrainConfig.model_validate(run_fields(data))
    config, assembly = model_of(data)
    task = data["task"] if "task" in data else _task_for(config, assembly)
    return TrainConfig.model_validate({"task": task, "model": assembly, "extensions": data.get("extensions", {}),
                                       "model_config": config.model_dump(mode="json")})


def _describes_run(data: Mapping[str, Any]) -> bool:
    """Whether there is a field that only a run has. `model` is no such field: it names the assembly in a model's file too."""
    fields = {field.alias or name for name, field in TrainConfig.model_fields.items()} - {"model"}
    return bool(fields & data.keys())


def _task_for(config: TransformerConfig, assembly: str) -> str:
    """The first task whose models have this head and direction."""
    from miniformer.model.assemblies import assembly_of

    registry, has_source = current_registry(), assembly_of(assembly).has_source
    for entry in registry.entries("task"):
        if entry.state is Availability.AVAILABLE:
            task = cast("type[Task]", registry.load("task", entry.qualified))
            if (task.has_source, task.causal, task.head) == (has_source, config.causal, config.head.name):
                return entry.qualified
    direction = "an encoder-decoder" if has_source else "a decoder (causal: true)" if config.causal else "an encoder"
    raise SpecError(f"no task trains {direction} with head {config.head.name!r}; name a task beside model_config")
