"""`TrainConfig`: everything that a run is told, as frozen data. No torch is imported to make one without a model.

The field that people pass as `model_config` is stored as `architecture`, since pydantic has a use of its own for that
name; JSON and YAML say `model_config`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from miniformer.config.model_config import TransformerConfig
from miniformer.data.stdlib import NAME
from miniformer.kernel.errors import SpecError
from miniformer.kernel.options import explain
from miniformer.kernel.registry import canonical, current_registry
from miniformer.kernel.spec import ComponentSpec

STDLIB_STEPS = 450
"""Optimizer steps of a run on the embedded corpus that is not told how long to train: a few minutes on two cores."""
DEFAULT_EPOCHS = 10
COMPONENTS = ("task", "optimizer", "scheduler")


class TrainConfig(BaseModel):
    """The spec of a run. Steps are optimizer steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    train_path: str = Field(default=NAME, description="JSONL file, or stdlib: this Python's standard library")
    val_path: str | None = Field(default=None, description="JSONL file to measure on; none: hold records out")
    test_path: str | None = Field(default=None, description="JSONL file to measure the best model on at the end")
    val_fraction: float = Field(default=0.05, gt=0, lt=1, description="part of the records that is held out")
    tokenizer: str | None = Field(default=None, description="tokenizer.json; none: train one on the training texts")
    tokenizer_vocab_size: int = Field(default=4096, ge=300, description="tokens of a tokenizer that is trained")
    task: ComponentSpec = Field(default=ComponentSpec(name="language-modeling"), description="what to learn")
    model: Literal["transformer", "seq2seq"] | None = Field(default=None, description="how the blocks are assembled, "
                                                            "transformer or seq2seq; none: as the task needs")
    architecture: dict[str, Any] = Field(default_factory=dict, alias="model_config",
                                         description="fields of TransformerConfig, as a JSON object")
    optimizer: ComponentSpec = Field(default=ComponentSpec(name="adamw"), description="how weights are updated")
    scheduler: ComponentSpec = Field(default=ComponentSpec(name="cosine"), description="how the learning rate goes")
    batch_size: PositiveInt = Field(default=16, description="rows of a batch")
    max_epochs: PositiveInt | None = Field(default=None, description=f"passes over the data; none: {DEFAULT_EPOCHS}, if "
                                           "max_steps is none too")
    max_steps: PositiveInt | None = Field(default=None, description="stop after so many steps")
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices; norms, biases, embeddings have none")
    warmup_steps: int | None = Field(default=None, ge=0, description="steps to the peak rate; none: 1/20 of the run")
    gradient_clip_val: float | None = Field(default=1.0, gt=0, description="norm that gradients are cut to")
    accumulate_grad_batches: PositiveInt = Field(default=1, description="batches that make up one step")
    val_every: PositiveInt | None = Field(default=None, description="batches between measurements; none: an epoch")
    checkpoint_metric: str = Field(default="val_loss", description="what the best model is best in")
    early_stopping_patience: PositiveInt | None = Field(default=None, description="measurements without a better one "
                                                        "before stopping")
    precision: Literal["auto", "bf16", 16, 32, 64] = Field(default="auto", description="auto: bf16 where the hardware "
                                                           "has it, else 32")
    compile: bool = Field(default=False, description="compile the blocks, which takes some time at first and makes steps "
                                                     "somewhat faster")
    gpus: int | None = Field(default=None, ge=0, description="number of GPUs; none: what there is")
    num_workers: int = Field(default=0, ge=0, description="processes that make batches")
    seed: int = Field(default=42, ge=0, lt=2**32, description="of everything random")
    work_dir: str = Field(default="runs", description="folder of all runs")
    cache: bool = Field(default=True, description="keep tokenised documents in .cache of work_dir for the next run on them")
    experiment_name: str | None = Field(default=None, description="folder of this run; none: named for task and data")
    logger: Literal["csv", "tensorboard", "wandb"] = Field(default="csv", description="beside metrics.csv, which is "
                                                           "always written")
    extensions: dict[str, dict[str, Any]] = Field(default_factory=dict, description="extensions and their options")

    @model_validator(mode="wrap")
    @classmethod
    def _told_clearly(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        if isinstance(value, Mapping):
            registry = current_registry()
            for kind in COMPONENTS:
                name = value.get(kind)
                name = name.get("name") if isinstance(name, Mapping) else getattr(name, "name", name)
                if isinstance(name, str):
                    registry.find(kind, name)
            extensions = value.get("extensions")
            for name in extensions if isinstance(extensions, Mapping) else ():
                if isinstance(name, str):
                    registry.find("extension", name)
        try:
            return handler(value)
        except ValidationError as error:
            names = [field.alias or name for name, field in cls.model_fields.items()]
            raise SpecError(explain(error, "", names)) from None

    @field_validator(*COMPONENTS, mode="before")
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
        return value

    @field_validator("architecture")
    @classmethod
    def _text_as_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Text, as a command line has it, as the number that the model's field is."""
        return {name: _number(name, given) if isinstance(given, str) else given for name, given in value.items()}

    @field_validator("extensions", mode="before")
    @classmethod
    def _no_options(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {name: options or {} for name, options in value.items()} if isinstance(value, Mapping) else value

    @property
    def duration(self) -> tuple[int, int]:
        """Most epochs and most steps, -1 for no bound."""
        if self.max_epochs is None and self.max_steps is None:
            return (-1, STDLIB_STEPS) if self.train_path == NAME else (DEFAULT_EPOCHS, -1)
        return self.max_epochs or -1, self.max_steps or -1

    def with_fields(self, **fields: Any) -> TrainConfig:
        """The same config with some fields changed, validated again."""
        return TrainConfig.model_validate({**self.to_data(), **fields})

    def to_data(self) -> dict[str, Any]:
        """As JSON data, under the names that people use."""
        return self.model_dump(mode="json", by_alias=True)


def _number(name: str, text: str) -> Any:
    """The number that the text is, for a field that takes one; building the model says what is wrong with any other text."""
    field = TransformerConfig.model_fields.get(name)
    if field is None:
        return text
    bounded: Any = Annotated[field.annotation, field]
    with suppress(ValidationError):
        number: Any = TypeAdapter(bounded).validate_strings(text)
        return number if isinstance(number, int | float) else text
    return text
