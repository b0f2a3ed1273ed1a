"""Which task, assembly and model a run's config means: what its task needs, joined with what the config says."""

from __future__ import annotations

from typing import cast

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.errors import SpecError
from miniformer.kernel.registry import State, current_registry
from miniformer.kernel.spec import ComponentSpec, resolve
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_for, assembly_of
from miniformer.model.assembly import Assembly

from .train_config import TrainConfig


def task_spec(config: TrainConfig) -> ComponentSpec:
    """The run's task in resolved form; where the model has an encoder for a source, the task that stands for it there.

    Raises:
        UserError: there is no such task, or the config's assembly cannot be trained with it.
    """
    spec = resolve("task", config.task)
    task = _class_of(spec.name)
    if config.model is None or assembly_of(config.model).has_source == task.has_source:
        return spec
    if task.has_source:
        raise SpecError(f"model is {config.model!r}, and task {spec.name!r} has a source for an encoder and a target for a "
                        f"decoder; it trains model {assembly_for(True).assembly!r}")
    if task.with_source is None:
        able = [entry.name for entry in current_registry().entries("task") if entry.state is State.AVAILABLE
                and ((cls := _class_of(entry.qualified)).has_source or cls.with_source)]
        raise SpecError(f"model is {config.model!r}, and task {spec.name!r} has no source for its encoder; tasks that have "
                        f"one: {', '.join(able)}")
    return resolve("task", {"name": task.with_source, **spec.options})


def model_class(task: Task) -> type[Assembly]:
    """The assembly that a task trains."""
    return assembly_for(task.has_source)


def model_spec(config: TrainConfig, task: Task) -> TransformerConfig:
    """The model of a run: what its task needs, and what its config says.

    Raises:
        UserError: no such model can be built.
    """
    return TransformerConfig.model_validate({"causal": task.causal, "head": task.head, **config.architecture})


def _class_of(name: str) -> type[Task]:
    return cast(type[Task], current_registry().load("task", name))
