"""A spec names a component and its options; `build` makes the component.

In JSON and YAML a spec is `"swiglu"` or `{"name": "swiglu", "bias": true}`. Names are looked up in the registry and nowhere
else, so a file can only select code that an installed distribution has registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .errors import ComponentError, MiniformerError, SpecError, UserError, in_one_line, line_of
from .kinds import kind_of
from .options import SHAPE_ONLY, arguments, complete, explain
from .out_of_memory import ran_out
from .registry import current_registry

T = TypeVar("T")


class ComponentSpec(BaseModel):
    """A component's name, and its options as JSON data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and not (set(value) <= {"name", "options"} and
                                               isinstance(value.get("options", {}), Mapping)):
            return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


def resolve(kind: str, value: Any, slot: str = "") -> ComponentSpec:
    """Make a spec explicit: the name as it is saved, and every option checked and filled in. Imports the component.

    Args:
        kind: the component's kind.
        value: a name, a mapping with a name, or a `ComponentSpec`.
        slot: what errors call the place of the spec, where that is not the kind.

    Raises:
        UserError: there is no such component, or it does not take these options.
    """
    if not isinstance(value, (str, Mapping, ComponentSpec)) or (isinstance(value, Mapping) and "name" not in value):
        raise SpecError(f"{slot or kind}: expected a name or a mapping with a 'name'; found {value!r:.80}")
    try:
        spec = ComponentSpec.model_validate(value)
    except ValidationError as error:
        raise SpecError(explain(error, slot or kind, ["name", "options"])) from None
    registry = current_registry()
    entry = registry.find(kind, spec.name)
    cls = registry.load(kind, spec.name)
    return ComponentSpec(name=entry.saved, options=complete(cls, spec.options, f"{slot or kind} {entry.name}"))


def build(interface: Callable[..., T], value: Any, *sizes: Any, slot: str = "") -> T:
    """Make a component from a spec in any form.

    Args:
        interface: the interface of the component's kind, such as `FeedForward`.
        value: a name, a mapping with a name, or a `ComponentSpec`.
        sizes: the kind's positional parameters, such as `d_model` and `d_ff`.
        slot: what errors call the place of the spec, where that is not the kind.

    Raises:
        UserError: the spec is wrong, or the component refuses the sizes.
        ComponentError: its constructor failed in another way.
    """
    kind = kind_of(cast(type, interface))
    spec = resolve(kind, value, slot)
    cls = current_registry().load(kind, spec.name)
    try:
        return cast(T, cls(*sizes, **arguments(cls, spec.options)))
    except ValueError as error:
        raise SpecError(f"{slot or kind} {spec.name}: {error}") from error
    except MiniformerError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        where = line_of(error, cls.__module__)
        raise ComponentError(f"{slot or kind} {spec.name} cannot be constructed: {in_one_line(error)} at {where}") from error


class _SlotOf:
    """How pydantic validates an option that is itself a component."""

    def __init__(self, interface: type) -> None:
        self.interface = interface

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._resolved, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kind = kind_of(self.interface)
        return {"description": f"a component of kind {kind}: its name, or an object with its name and options",
                "anyOf": [{"type": "string"}, {"type": "object", "properties": {"name": {"type": "string"}},
                                               "required": ["name"]}], "kind": kind}

    def _resolved(self, value: Any, info: ValidationInfo) -> Any:
        if info.context == SHAPE_ONLY:
            return value
        try:
            return resolve(kind_of(self.interface), value)
        except UserError as error:  # pydantic adds the path to the slot
            raise PydanticCustomError("component", "{text}", {"text": str(error)}) from None


if TYPE_CHECKING:
    Slot = Union[str, Mapping[str, Any], ComponentSpec, T]  # noqa: UP007 (a generic alias)
else:
    class Slot:
        """The type of an option that is a component: `inner: Slot[FeedForward] = "swiglu"`; `build` makes it."""

        def __class_getitem__(cls, interface: type) -> Any:
            return Annotated[ComponentSpec, _SlotOf(interface)]
