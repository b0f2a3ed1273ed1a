"""Spec files: what the file of a run or a model describes. One is read without torch, so that typos are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from miniformer.checkpoint.store import BEST, CONFIG
from miniformer.kernel.errors import SpecError, UserError
from miniformer.kernel.registry import Availability, current_registry

from .train_config import TrainConfig

if TYPE_CHECKING:
    from miniformer.config.model_config import TransformerConfig
    from miniformer.kernel.task import Task

ONE_STACK = "transformer"


def read_spec(path: Path) -> dict[str, Any]:
    """What a run folder, a folder with a model, a `run.json`, or a YAML or JSON file says.

    Raises:
        UserError: nothing of the kind is there, or it cannot be read.
    """
    if path.is_dir():
        found = [place for place in (path / "run.json", path / BEST / CONFIG, path / CONFIG) if place.is_file()]
        if not found:
            raise UserError(f"{path}: no run and no saved model here; expected run.json or {CONFIG}")
        path = found[0]
    from miniformer.data.yaml_file import read_fields

    return read_fields(path)


def model_of(data: Mapping[str, Any]) -> tuple[TransformerConfig, str]:
    """The model that is meant, and how it is assembled.

    Raises:
        UserError: no such model can be built.
    """
    from miniformer.config.model_config import TransformerConfig

    model, trained = data.get("model"), data.get("train")
    if isinstance(model, Mapping):  # as training and saving write it
        assembly = trained.get("model") if isinstance(trained, Mapping) else data.get("assembly")
        return TransformerConfig.model_validate(model), assembly or ONE_STACK
    if not _says_a_run(data):
        return TransformerConfig.model_validate({k: v for k, v in data.items() if k != "model"}), model or ONE_STACK

    from miniformer.kernel.spec import build
    from miniformer.kernel.task import Task

    from .specs import model_class, model_spec, task_spec

    run = TrainConfig.model_validate(data)
    task = build(Task, task_spec(run))
    fields = {"vocab_size": run.tokenizer_vocab_size, **run.architecture}
    if (outputs := task.n_outputs(fields["vocab_size"])) != fields["vocab_size"]:
        fields.setdefault("output_dim", max(1, outputs))  # labels are known once there are data
    return model_spec(run.with_fields(model_config=fields), task), model_class(task).assembly


def run_of(data: Mapping[str, Any]) -> TrainConfig:
    """The run that is meant; where only a model is described, a run of the first task that trains such a model.

    Raises:
        UserError: no such run can be, or no task trains the model.
    """
    trained = data.get("train")
    if isinstance(trained, Mapping):
        return TrainConfig.model_validate(trained)
    if not isinstance(data.get("model"), Mapping) and _says_a_run(data):
        return TrainConfig.model_validate(data)
    config, assembly = model_of(data)
    task = data["task"] if "task" in data else _task_for(config, assembly)
    return TrainConfig.model_validate({"task": task, "model": assembly, "extensions": data.get("extensions", {}),
                                       "model_config": config.model_dump(mode="json")})


def _says_a_run(data: Mapping[str, Any]) -> bool:
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
