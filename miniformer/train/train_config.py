"""`TrainConfig`: the spec of a run, as frozen data. Making one imports no torch.

The field that people write as `model_config` is stored as `architecture`, since pydantic needs the name `model_config` for
itself. JSON and YAML files say `model_config`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from miniformer.config.model_config import MOST_TOKENS, TransformerConfig, check_values, with_names_found
from miniformer.config.shorthands import SHORTHANDS
from miniformer.config.slots import RUN_SLOTS, SLOTS, find_components
from miniformer.data.stdlib import NAME
from miniformer.kernel.errors import SpecError, did_you_mean
from miniformer.kernel.options import explain, refuse_truth_values
from miniformer.kernel.registry import canonical, current_registry
from miniformer.kernel.spec import ComponentSpec

STDLIB_STEPS = 450
"""Optimizer steps of a run on the embedded corpus that is not given a length: a few minutes on two cores."""
DEFAULT_EPOCHS = 10
CACHE = ".cache"
"""Where in `work_dir` data are kept for the next run."""
MOST = 2**53
"""No count is larger. It is the last whole number that every reader of JSON holds exactly."""
MOST_WORKERS = 1024
"""More processes that make batches than any machine has cores."""
Count = Annotated[int, Field(ge=1, le=MOST)]
MODEL_FIELDS = (*TransformerConfig.model_fields, *SHORTHANDS)
"""Fields that `model_config` may have."""
_IN_MODEL = {name: f"model_config.{name}" for name in MODEL_FIELDS}


def _default(slot: str) -> ComponentSpec:
    name = SLOTS[slot].default
    assert name is not None
    return ComponentSpec(name=name)


class TrainConfig(BaseModel):
    """The spec of a run. Steps are optimizer steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    train_path: str = Field(default=NAME, description="JSONL file to train on; stdlib means the source of this Python's "
                                                      "standard library")
    val_path: str | None = Field(default=None, description="JSONL file to measure on; without one, part of the training "
                                                           "records is held out")
    test_path: str | None = Field(default=None, description="JSONL file to measure the best model on, at the end of the run")
    val_fraction: float = Field(default=0.05, gt=0, lt=1, description="part of the training records that is held out where "
                                                                      "there is no val_path")
    tokenizer: str | None = Field(default=None, description="a tokenizer.json; without one, a tokenizer is trained on the "
                                                            "training texts")
    tokenizer_vocab_size: int = Field(default=4096, ge=300, le=MOST_TOKENS, description="size of the vocabulary where a "
                                                                                        "tokenizer is trained")
    task: ComponentSpec = Field(default=_default("task"), description="what the model learns to do")
    model: Literal["transformer", "seq2seq"] | None = Field(default=None, description="transformer (one stack of layers) or "
                                                            "seq2seq (encoder and decoder); without one, as the task needs")
    architecture: dict[str, Any] = Field(default_factory=dict, alias="model_config",
                                         description="fields of TransformerConfig, as a JSON object")
    optimizer: ComponentSpec = Field(default=_default("optimizer"), description="how weights are updated")
    scheduler: ComponentSpec = Field(default=_default("scheduler"), description="how the learning rate changes during the run")
    batch_size: Count = Field(default=16, le=MOST_TOKENS, description="rows in a batch of each process")
    max_epochs: Count | None = Field(default=None, description=f"most passes over the training data; without it and "
                                           f"max_steps, {DEFAULT_EPOCHS}, or {STDLIB_STEPS} steps on stdlib")
    max_steps: Count | None = Field(default=None, description="most optimizer steps")
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    warmup_steps: int | None = Field(default=None, ge=0, le=MOST, description="steps until the learning rate is at its peak; "
                                                                              "without it, 1/20 of the run")
    gradient_clip_val: float | None = Field(default=1.0, gt=0, description="largest norm of the gradients, to which longer "
                                                                           "ones are scaled down; none: they are not")
    accumulate_grad_batches: Count = Field(default=1, description="batches in one optimizer step")
    val_every: Count | None = Field(default=None, description="batches between measurements; without it, one epoch")
    checkpoint_metric: str = Field(default="val_loss", description="metric that decides which model is the best")
    early_stopping_patience: Count | None = Field(default=None, description="measurements without a better one after "
                                                        "which the run stops; without it, it does not stop early")
    precision: Literal["auto", "bf16", 16, 32, 64] = Field(default="auto", description="auto means bf16 where the hardware "
                                                           "is fast at it, else 32")
    compile: bool = Field(default=False, description="compile the layers: the run starts later, and its steps are somewhat "
                                                     "faster")
    gpus: int | None = Field(default=None, ge=0, le=MOST, description="number of GPUs; without it, all that there are")
    num_workers: int = Field(default=0, ge=0, le=MOST_WORKERS, description="processes that make batches; with 0, the "
                                                                               "run's own process does")
    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of everything that is random")
    work_dir: str = Field(default="runs", description="folder that holds the folders of all runs")
    cache: bool = Field(default=True, description="keep tokenised documents in work_dir/.cache, for later runs on them")
    experiment_name: str | None = Field(default=None, description="name of the run's folder; without one, it is named after "
                                                                  "data and task")
    logger: Literal["csv", "tensorboard", "wandb"] = Field(default="csv", description="where metrics go beside metrics.csv, "
                                                           "which is always written")
    extensions: dict[str, dict[str, Any]] = Field(default_factory=dict, description="active extensions and their options")

    _numbers_are_numbers = field_validator("*", mode="before")(refuse_truth_values)

    @model_validator(mode="wrap")
    @classmethod
    def _names_first(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        """Look up the names of components, then validate; a mistake becomes a `SpecError` with its field."""
        names = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(value, Mapping):
            find_components(RUN_SLOTS, value)
            if blank := [slot for slot in RUN_SLOTS if slot in value and value[slot] is None]:
                raise SpecError(f"{blank[0]}: left blank; expected a name, such as {SLOTS[blank[0]].default}, or no such field")
            extensions = value.get("extensions")
            for name in extensions if isinstance(extensions, Mapping) else ():
                if isinstance(name, str):
                    current_registry().find("extension", name)
        try:
            return handler(value)
        except ValidationError as error:
            raise SpecError(explain(error, "", names, _IN_MODEL)) from None

    @field_validator(*RUN_SLOTS, mode="before")
    @classmethod
    def _spelt_with_dashes(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            return {**value, "name": canonical(value["name"])}
        return canonical(value) if isinstance(value, str) else value

    @field_validator("precision", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("train_path", "val_path", "test_path", "tokenizer", "work_dir", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("experiment_name")
    @classmethod
    def _a_folder_of_its_own(cls, value: str | None) -> str | None:
        if value is None or value == "none":
            return None
        if not value.strip() or value in (".", "..") or not value.isprintable() or set(value) & set("/\\"):
            raise ValueError("expected the plain name of a folder in work_dir, without / or \\, or nothing")
        if value.casefold() == CACHE:  # whose folders are removed when there are many
            raise ValueError("expected the plain name of a folder in work_dir, where this one is the cache")
        return value

    @field_validator("architecture")
    @classmethod
    def _model_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The model's fields, with text from a command line as numbers. A wrong name is an error before torch is imported."""
        for name in value:
            if name not in MODEL_FIELDS:
                hint = did_you_mean(name, MODEL_FIELDS, settings=True)
                raise SpecError(f"model_config.{name}: there is no {name!r} here{hint}")
        fields = {name: _number(name, item) if isinstance(item, str) else item for name, item in value.items()}
        with_names_found(fields)
        check_values(fields, "model_config")
        return fields

    @field_validator("extensions", mode="before")
    @classmethod
    def _no_options(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {name: options or {} for name, options in value.items()} if isinstance(value, Mapping) else value

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The fields that are not as they are by default, under the names that files use."""
        changed = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        yield from changed.items()

    @property
    def duration(self) -> tuple[int, int]:
        """The largest number of epochs and of steps, -1 for no bound."""
        if self.max_epochs is None and self.max_steps is None:
            return (-1, STDLIB_STEPS) if self.train_path == NAME else (DEFAULT_EPOCHS, -1)
        return self.max_epochs or -1, self.max_steps or -1

    def with_fields(self, **fields: Any) -> TrainConfig:
        """A copy with some fields changed, validated again."""
        return TrainConfig.model_validate({**self.to_data(), **fields})

    def to_data(self) -> dict[str, Any]:
        """The config as JSON data, under the names that files use."""
        return self.model_dump(mode="json", by_alias=True)


def _number(name: str, text: str) -> Any:
    """The number or truth value that a text stands for in a model's field; any other text comes back as it is.

    What is wrong with a text that should be a number is reported when the model is built.
    """
    field = TransformerConfig.model_fields.get(name)
    expected: Any = SHORTHANDS[name].type if field is None else Annotated[field.annotation, field]
    with suppress(ValidationError):
        number: Any = TypeAdapter(expected).validate_strings(text)
        return number if isinstance(number, int | float) else text
    return text
