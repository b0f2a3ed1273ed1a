"""Shorthands: fields and components that stand for others, replaced by the explicit form before anything is stored.

`activation`, `rotary_pct` and `pre_norm` are fields of older configurations. A component such as `rope-mha` is registered with
class data `shorthand_for`, which says what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from miniformer.kernel.errors import SpecError
from miniformer.kernel.options import explain
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec

from .slots import LAYER_SLOTS, MODEL_SLOTS, SLOTS, component_name


@dataclass(frozen=True, slots=True)
class Shorthand:
    """A field that is short for another: the field it stands for, the type of its value, and its help."""

    field: str
    type: type
    description: str


SHORTHANDS = {
    "activation": Shorthand("ffn", str, "short for --ffn, such as gelu, relu or swiglu"),
    "rotary_pct": Shorthand("position", float, "short for --position rope with option pct; 0 means --position sinusoidal"),
    "pre_norm": Shorthand("norm_placement", bool, "short for --norm-placement pre, or with --no-pre-norm for post"),
}
_SHARE = TypeAdapter(Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)])


def expand_fields(fields: dict[str, Any]) -> None:
    """Replace, in place, the fields that are shorthands by those that they stand for.

    Raises:
        SpecError: the value makes no sense, or contradicts the field that it stands for.
    """
    _expand_activation(fields)
    _expand_rotary_pct(fields)
    _expand_pre_norm(fields)


def _expand_activation(fields: dict[str, Any]) -> None:
    activation = fields.pop("activation", None)
    if activation is None:
        return
    if not isinstance(activation, str):
        raise SpecError(f"activation: expected the name of a feed-forward; found {activation!r:.80}")
    ffn = fields.get("ffn") or activation
    if component_name(ffn) not in (None, activation):
        raise SpecError(f"activation={activation!r} is short for ffn={activation!r}, and ffn is {component_name(ffn)!r}; "
                        "give one of them")
    fields["ffn"] = ffn


def _expand_rotary_pct(fields: dict[str, Any]) -> None:
    pct = fields.pop("rotary_pct", None)
    if pct is None:
        return
    try:
        _SHARE.validate_python(pct)
    except ValidationError as error:
        raise SpecError(explain(error, "rotary_pct", [])) from None
    # as in the configurations that have this field: without rotation, positions are added to the embedding
    meant = {"name": "rope", "pct": pct} if pct else {"name": "sinusoidal"}
    position = fields.get("position") or meant["name"]
    options = ComponentSpec.model_validate(position).options if component_name(position) == meant["name"] else None
    if options is None or options.get("pct", pct) != pct:
        raise SpecError(f"rotary_pct={pct!r} is short for position={meant}, and position is {position!r}; give one of them")
    fields["position"] = {**options, **meant}


def _expand_pre_norm(fields: dict[str, Any]) -> None:
    pre_norm = fields.pop("pre_norm", None)
    if pre_norm is None:
        return
    if not isinstance(pre_norm, bool):
        raise SpecError(f"pre_norm: expected true or false; found {pre_norm!r:.80}")
    meant = "pre" if pre_norm else "post"
    placement = fields.setdefault("norm_placement", meant)
    if placement != meant:
        raise SpecError(f"pre_norm={pre_norm} is short for norm_placement={meant!r}, and norm_placement is {placement!r}; "
                        "give one of them")


def expand_components(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The slots of a layer that `fields` fill, with components that are shorthands replaced. Imports the components.

    What is written wins over what a shorthand implies: an option over the shorthand's, a named component over another slot's.
    """
    slots = {slot: fields[slot] for slot in LAYER_SLOTS if fields.get(slot) is not None}
    for slot, value in list(slots.items()):
        name = component_name(value)
        if name is None:
            continue
        component = current_registry().load(SLOTS[slot].kind, name)
        for target, meant in (getattr(component, "shorthand_for", None) or {}).items():
            spec = ComponentSpec.model_validate(meant)
            if target == slot:
                written = ComponentSpec.model_validate(value).options
                slots[slot] = ComponentSpec(name=spec.name, options={**spec.options, **written})
            else:
                slots.setdefault(target, spec)
    return slots


def refuse_blanks(fields: Mapping[str, Any]) -> None:
    """Refuse a field that is there without a value and whose default would silently take its place.

    Raises:
        SpecError: naming the field and what it may have.
    """
    for name in (*MODEL_SLOTS, *SHORTHANDS, "d_ff", "layers"):
        if name in fields and fields[name] is None:
            expected = f"a name, such as {SLOTS[name].default or 'lm'}" if name in SLOTS else "a value"
            raise SpecError(f"{name}: left blank; expected {expected}, or no such field")
