"""The table of slots: which fields of a model and of a run name a component, and of which kind. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class ComponentSlot:
    """A field whose value is a component: its name, or a mapping with its name and options.

    Attributes:
        name: what the field and its flag are called.
        kind: the kind of component that fits.
        default: the component that is used where none is named; None where other fields decide.
        owner: whether it is a field of the model (`TransformerConfig`) or of the run (`TrainConfig`).
        per_layer: whether an entry of `layers` may name a component of its own.
    """

    name: str
    kind: str
    default: str | None
    owner: Literal["model", "run"]
    per_layer: bool = False


SLOTS = {slot.name: slot for slot in (
    ComponentSlot("attention", "attention", "mha", "model", per_layer=True),
    ComponentSlot("position", "position", "rope", "model", per_layer=True),
    ComponentSlot("ffn", "ffn", "swiglu", "model", per_layer=True),
    ComponentSlot("norm", "norm", "rmsnorm", "model", per_layer=True),
    ComponentSlot("cross_attention", "attention", "mha", "model"),
    ComponentSlot("head", "head", None, "model"),  # the task's, else lm, or classification where there is an output_dim
    ComponentSlot("task", "task", "language-modeling", "run"),
    ComponentSlot("optimizer", "optimizer", "adamw", "run"),
    ComponentSlot("scheduler", "scheduler", "cosine", "run"),
)}
MODEL_SLOTS = tuple(slot.name for slot in SLOTS.values() if slot.owner == "model")
LAYER_SLOTS = tuple(slot.name for slot in SLOTS.values() if slot.per_layer)
RUN_SLOTS = tuple(slot.name for slot in SLOTS.values() if slot.owner == "run")


def component_name(value: Any) -> str | None:
    """The name in the value of a slot, in whichever form it is written; None where there is none."""
    if isinstance(value, ComponentSpec):
        return value.name
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def find_components(slots: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Look up every component that `fields` name, so that a typo is an error before any component is imported.

    Raises:
        UserError: no usable component has the name; the error says what is near.
    """
    for slot in slots:
        name = component_name(fields.get(slot))
        if name is not None:
            current_registry().find(SLOTS[slot].kind, name)
