"""What the importer and the exporter know of an architecture of transformers: one table, read in both directions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from miniformer.config.model_config import TransformerConfig
from miniformer.model.assembly import BlockAssembly
from miniformer.model.transformer import Transformer

from .pattern import Found, Problem, Unsupported, fill, match
from .weights import Row

Fields = dict[str, Any]

logger = logging.getLogger(__name__)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh",
               "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
               "linear": "identity"}
"""Their activations and ours; the first name of one is written."""
INERT = frozenset({
    "_name_or_path", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "initializer_range", "pad_token_id", "cls_token_id", "sep_token_id", "unk_token_id", "id2label", "label2id", "problem_type",
    "gradient_checkpointing", "output_past", "task_specific_params", "_attn_implementation",
})
"""Fields of any config.json that change nothing in what these models compute."""


def unchanged(fields: Fields, weights: Mapping[str, Tensor]) -> Fields:
    """The fields as they are."""
    return fields


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers.

    Attributes:
        family: what people call it.
        name: the class, as `architectures` of a config.json says it.
        model_type: as a config.json says it.
        assembly: the class of ours.
        spec: its pattern; a field of `TransformerConfig` that is left out has its default.
        defaults: the fields that are read, each with its value where a config.json leaves it out.
        fixed: fields that must have this value, or one of a tuple, of which the first is meant where it is left out.
        inert: fields that change nothing in what it computes.
        weights: which tensors are whose.
        base: the name that transformers puts before all tensors but those of the head.
        copies: tensors that may be in a file beside what they are tied to.
        left_out: patterns of other tensors that may be in a file, each with what it is; "" if it holds nothing learnt.
        task: the task that the head serves.
        labels: the width of the head is the number of labels.
        read: completes the fields of a config.json, from the weights too where they decide.
        write: turns fields back into those of a config.json.
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
    read: Callable[[Fields, Mapping[str, Tensor]], Fields] = unchanged
    write: Callable[[Fields], Fields] = dict

    def fields(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Fields:
        """The fields that the pattern speaks of.

        Raises:
            Unsupported: a field has a value that cannot be represented.
        """
        for name, value in self.fixed.items():
            values = value if isinstance(value, tuple) else (value,)
            if config.get(name, values[0]) not in values:
                raise Unsupported(name, config[name], values)
        known = {name: _checked(name, config.get(name, default), default) for name, default in self.defaults.items()}
        if self.labels:
            known["num_labels"] = len(config.get("id2label") or range(2))
        if isinstance(ends := known["eos_token_id"], list):
            known["eos_token_id"] = ends[0] if ends else None
            if len(ends) > 1:
                logger.warning("eos_token_id %s: a text of miniformer ends at one token; taken: %s", ends, ends[0])
        if known.get("bos_token_id", 0) is None:
            known["bos_token_id"] = TransformerConfig.model_fields["bos_id"].default
        return self.read(known, weights)

    def unknown(self, config: Mapping[str, Any]) -> list[str]:
        """The fields of a config.json of which nothing is known."""
        return [name for name in config if name not in {*self.defaults, *self.fixed, *self.inert, *INERT}]

    def config(self, fields: Fields) -> TransformerConfig:
        """The spec for the fields of a config.json."""
        return TransformerConfig.model_validate(fill(self.spec, fields))

    def find(self, model: BlockAssembly) -> Found:
        """The fields of a config.json that `model` has, or what does not fit."""
        if not isinstance(model, self.assembly):
            return Found(problems=[Problem("assembly", model.assembly, (self.assembly.assembly,))])
        layers = {repr(layer): layer for layer in model.config.layer_specs()}
        if len(layers) > 1:
            return Found(problems=[Problem("layers", "of several kinds", ("all alike",))])
        spec = {**model.config.model_dump(mode="json"), **next(iter(layers.values())).model_dump(mode="json"), "layers": []}
        del spec["repeat"]
        found = Found()
        for name, value in spec.items():
            default = [] if name == "layers" else TransformerConfig.model_fields[name].get_default()
            found.join(match(self.spec.get(name, default), value, name), name)
        if not found.problems:
            try:
                found.fields = self.write(found.fields)
            except Unsupported as error:
                found.problems.append(Problem(error.name, error.value, tuple(error.supported)))
        return found


KINDS: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number"),
    str: ((str,), "a text")}


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value, if it is of its default's type; ids of tokens may be left open, and ends of texts be several."""
    if default is None or (name.endswith("_token_id") and (value is None or isinstance(value, (int, list)))):
        return value
    types, kind = KINDS[type(default)]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Unsupported(name, value, [kind])
    return value
