"""The description of an architecture of transformers: one table that the importer and the exporter both read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from miniformer.config.model_config import TransformerConfig
from miniformer.model.assembly import BlockAssembly
from miniformer.model.transformer import Transformer

from .pattern import MatchResult, Problem, Unsupported, fill, match
from .weights import Row

Fields = dict[str, Any]

logger = logging.getLogger(__name__)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh",
               "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
               "linear": "identity"}
"""Activations by their names in transformers, with ours; if several names mean one activation, an export writes the first."""
INERT = frozenset({
    "_name_or_path", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "initializer_range", "pad_token_id", "cls_token_id", "sep_token_id", "unk_token_id", "id2label", "label2id", "problem_type",
    "gradient_checkpointing", "output_past", "task_specific_params", "_attn_implementation",
})
"""Fields of a config.json that do not change what any of these models computes."""


CHOICE, REGRESSION = "single_label_classification", "regression"
"""Values of `problem_type`: one label of several, and a number."""


def unchanged(fields: Fields, weights: Mapping[str, Tensor]) -> Fields:
    """The fields as they are."""
    return fields


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers.

    Attributes:
        family: its usual name.
        name: the class, as `architectures` of a config.json names it.
        model_type: the `model_type` of a config.json.
        spec: the pattern of its spec; a field of `TransformerConfig` that is left out must have its default.
        defaults: the fields that are read, each with the value that it has if a config.json leaves it out.
        weights: the table of tensors, with their names in transformers and in miniformer.
        base: the prefix of all tensor names but those of the head.
        task: the task that the head serves.
        assembly: the class of models in miniformer.
        fixed: fields that must have this value, or one of a tuple; the first is meant if a config.json leaves the field out.
        inert: fields that do not change what the model computes.
        copies: tensors that may be in a file although they are tied to another one, which is named.
        left_out: patterns of further tensors that may be in a file and are not read, each with a description; "" if the tensor
            holds nothing learnt.
        labels: whether the width of the head is the number of labels.
        problems: the tasks that it serves instead of `task`, by the `problem_type` of a config.json.
        read: completes the fields of a config.json; some depend on the weights.
        write: turns the fields back into those of a config.json.
    """

    family: str
    name: str
    model_type: str
    spec: Mapping[str, Any]
    defaults: Mapping[str, Any]
    weights: tuple[Row, ...]
    base: str
    task: str
    assembly: type[BlockAssembly] = Transformer
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    copies: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    labels: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Fields, Mapping[str, Tensor]], Fields] = unchanged
    write: Callable[[Fields], Fields] = dict

    def fields(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Fields:
        """The fields that the pattern refers to.

        Raises:
            Unsupported: a field has a value that cannot be represented.
        """
        for name, value in self.fixed.items():
            values = value if isinstance(value, tuple) else (value,)
            if config.get(name, values[0]) not in values:
                raise Unsupported(name, config[name], values)
        fields = {name: _checked(name, config.get(name, default), default) for name, default in self.defaults.items()}
        self.problem_of(config)
        if self.labels:
            fields["num_labels"] = n_labels(config)
        if isinstance(ends := fields["eos_token_id"], list):
            fields["eos_token_id"] = ends[0] if ends else None
            if len(ends) > 1:
                logger.warning("eos_token_id %s: miniformer ends a text at one token; using %s", ends, ends[0])
        if fields.get("bos_token_id", 0) is None:
            fields["bos_token_id"] = TransformerConfig.model_fields["bos_id"].default
        return self.read(fields, weights)

    def problem_of(self, config: Mapping[str, Any]) -> str | None:
        """The `problem_type` of a config.json; where it says none, a single output is a number, and several are a choice.

        Raises:
            Unsupported: it does not fit the number of outputs. A choice among one label would always be that label.
        """
        if not self.problems:
            return None
        usual, other = (REGRESSION, CHOICE) if n_labels(config) == 1 else (CHOICE, REGRESSION)
        problem: str = config.get("problem_type") or usual
        if problem == other or problem not in self.problems:
            raise Unsupported("problem_type", problem, (None, *(name for name in self.problems if name != other)))
        return problem

    def unknown(self, config: Mapping[str, Any]) -> list[str]:
        """The fields of a config.json that this architecture does not read."""
        return [name for name in config if name not in {*self.defaults, *self.fixed, *self.inert, *INERT}]

    def config(self, fields: Fields) -> TransformerConfig:
        """The spec that the fields of a config.json describe."""
        return TransformerConfig.model_validate(fill(self.spec, fields))

    def find(self, model: BlockAssembly) -> MatchResult:
        """The fields of a config.json that describe `model`, or the parts of it that do not fit."""
        if not isinstance(model, self.assembly):
            return MatchResult(problems=[Problem("assembly", model.assembly, (self.assembly.assembly,))])
        layers = {repr(layer): layer for layer in model.config.layer_specs()}
        if len(layers) > 1:
            return MatchResult(problems=[Problem("layers", "of several kinds", ("all alike",))])
        spec = {**model.config.model_dump(mode="json"), **next(iter(layers.values())).model_dump(mode="json"), "layers": []}
        del spec["repeat"]
        result = MatchResult()
        for name, value in spec.items():
            default = [] if name == "layers" else TransformerConfig.model_fields[name].get_default()
            result.join(match(self.spec.get(name, default), value, name), name)
        if not result.problems:
            try:
                result.fields = self.write(result.fields)
            except Unsupported as error:
                result.problems.append(Problem(error.name, error.value, tuple(error.supported)))
        return result


def n_labels(config: Mapping[str, Any]) -> int:
    """The number of outputs of a classifier."""
    return len(config.get("id2label") or range(2))


KINDS: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number"),
    str: ((str,), "a text")}


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value, which must be of its default's type; a token id may also be null, or a list of ids.

    Raises:
        Unsupported: it is of another type.
    """
    if default is None or (name.endswith("_token_id") and (value is None or isinstance(value, (int, list)))):
        return value
    types, kind = KINDS[type(default)]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Unsupported(name, value, [kind])
    return value
