"""The task, assembly and model of a run: from what its task needs, its config says and its data decides."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.data.jsonl import read_lines
from miniformer.data.prepare import PreparedData
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.errors import SpecError, did_you_mean
from miniformer.kernel.hooks import resolve_extensions
from miniformer.kernel.registry import Availability, current_registry
from miniformer.kernel.renamed import old_attributes
from miniformer.kernel.spec import ComponentSpec, build, resolve
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_for, assembly_of
from miniformer.model.assembly import BlockAssembly
from miniformer.ops.torch_private import has_fast_bf16
from miniformer.tasks.collate import start_of

from .cost import check_room
from .train_config import TrainConfig

RECORDS = 50
"""First records from which a task learns what it needs to name its metrics."""


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
        able = [entry.name for entry in current_registry().entries("task") if entry.state is Availability.AVAILABLE
                and ((cls := _class_of(entry.qualified)).has_source or cls.with_source)]
        raise SpecError(f"model is {config.model!r}, and task {spec.name!r} has no source for its encoder; tasks that have "
                        f"one: {', '.join(able)}")
    return resolve("task", {"name": task.with_source, **spec.options})


def model_class(task: Task) -> type[BlockAssembly]:
    """The assembly that a task trains."""
    return assembly_for(task.has_source)


def model_spec(config: TrainConfig, task: Task) -> TransformerConfig:
    """The model of a run: what its task needs, and what its config says.

    Raises:
        UserError: no such model can be built.
    """
    return TransformerConfig.model_validate({"causal": task.causal, "head": task.head, **config.architecture})


def with_data_decisions(config: TrainConfig, data: PreparedData) -> TrainConfig:
    """The config with what the data and the machine decide filled in.

    Raises:
        SpecError: the model cannot hold what the data has.
    """
    fields = dict(config.architecture)
    if fields.setdefault("input_dim", data.task.input_dim) != data.task.input_dim:
        there = "texts" if data.task.input_dim is None else f"series of {data.task.input_dim} numbers a step"
        raise SpecError(f"model_config.input_dim is {fields['input_dim']}, and the inputs are {there}")
    size = data.tokenizer.vocab_size
    if data.task.input_dim is None and fields.setdefault("vocab_size", size) < size:
        raise SpecError(f"model_config.vocab_size is {fields['vocab_size']}, and the tokenizer has {size} tokens, counted up "
                        "to its highest id")
    n_outputs = data.task.n_outputs(fields.get("vocab_size", size))
    if fields.get("output_dim") not in (None, n_outputs):
        raise SpecError(f"model_config.output_dim is {fields['output_dim']}, and task {data.task_spec.name!r} has "
                        f"{n_outputs} outputs with this data")
    if n_outputs != fields.get("vocab_size") or data.task.input_dim is not None:
        fields["output_dim"] = n_outputs
    if fields.get("causal") not in (None, data.task.causal):
        raise SpecError(f"task {data.task_spec.name!r} trains a model with causal: {str(data.task.causal).lower()}")
    fields.setdefault("bos_id", start_of(data.tokenizer))
    fields.setdefault("eos_id", data.tokenizer.eos_id)
    if config.precision == "auto":
        config = config.with_fields(precision=best_precision())
    return config.with_fields(
        model=model_class(data.task).assembly, model_config=fields, task=data.task_spec,
        extensions=resolve_extensions(config.extensions),
        **{kind: resolve(kind, getattr(config, kind)) for kind in ("optimizer", "scheduler")})


def check_model(config: TrainConfig) -> None:
    """Refuse a model that cannot be built or cannot fit into memory, before the data is read.

    The data decide how many tokens and outputs there are, so that they count as one here.
    """
    unknown = {"vocab_size": 1} if config.architecture.get("input_dim") is None else {"output_dim": 1}
    config = config.with_fields(model_config={**unknown, **config.architecture})
    task = build(Task, task_spec(config))
    spec, assembly = model_spec(config, task), model_class(task)
    check_room(config, assembly, spec, spec.max_seq_len if task.packs else 0)
    if not task.additive and config.batch_size == 1:
        raise SpecError(f"batch_size is 1, and task {config.task.name!r} compares the records of a batch with each other; "
                        "expected at least 2")
    with torch.device("meta"):
        assembly(spec if spec.layers else spec.with_fields(n_layers=1))


def check_metric(config: TrainConfig) -> None:
    """Refuse a `checkpoint_metric` that the task does not have, before the data is read.

    The task learns from the first records what it needs to name its metrics. Where they are too few for that, or an extension
    is active that may add a metric, the name is looked at later.

    Raises:
        SpecError: with the metrics that there are.
    """
    if config.checkpoint_metric == "val_loss" or config.extensions:
        return
    spec, path = task_spec(config), Path(config.train_path)
    try:
        task = build(Task, spec)
        lines = islice(read_lines(path, task.Record), RECORDS) if path.is_file() else ()
        learnt = task.fit([line.record for line in lines])
        task = build(Task, ComponentSpec(name=spec.name, options={**spec.options, **learnt}))
        names = {"loss", *task.metrics(Tokenizer.train(["a"], 300))}
    except Exception:  # it may need more than these records, and what is wrong with them is said when all are read
        return
    check_measured(config.checkpoint_metric, {f"val_{name}" for name in names})


def check_measured(metric: str, measured: Collection[str]) -> None:
    """Refuse a metric that is not among those that are measured.

    Raises:
        SpecError: it says what is near, and what is measured.
    """
    if metric not in measured:
        raise SpecError(f"checkpoint_metric {metric!r} is not measured{did_you_mean(metric, measured)}; measured are "
                        f"{', '.join(sorted(measured))}")


def best_precision() -> Any:
    """bf16 where the hardware multiplies it faster than fp32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else 32
    return "bf16" if has_fast_bf16() else 32


def _class_of(name: str) -> type[Task]:
    return cast(type[Task], current_registry().load("task", name))


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
