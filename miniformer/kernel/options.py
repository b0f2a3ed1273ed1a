"""The constructor is the schema: a component's options, read from the keyword-only parameters of its constructor.

One pydantic model is derived from them and serves validation, JSON schema, `describe` and the saved spec, so an option is
JSON data. `**options` means "and my parent's". Nothing else is read from a signature, and nothing is injected by a parameter's
name.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping, Set
from contextlib import suppress
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, create_model, field_serializer
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from .conformance import signature_chain
from .errors import SpecError, did_you_mean

SHAPE_ONLY = {"shape only": True}
"""Context of a validation that looks up no component that an option names."""


class Options(BaseModel):
    """Base of the models that are derived. JSON has no infinity, so no option has: it would be read again as null."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True,
                              allow_inf_nan=False, ser_json_inf_nan="constants", protected_namespaces=())

    @field_serializer("*", mode="wrap", when_used="json")
    def _in_order(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return _sorted(value, handler(value))


class OptionsSchema(GenerateJsonSchema):
    """JSON schema in which the defaults are as a spec saves them."""

    def encode_default(self, dft: Any) -> Any:
        return _sorted(dft, super().encode_default(dft))


@cache
def options_of(cls: type) -> type[BaseModel]:
    """The pydantic model of the options of component class `cls`.

    Raises:
        TypeError: an option has a name that a spec or its model needs for itself.
    """
    return _model(cls, _declared(cls))


def unserialisable_option(cls: type) -> str:
    """Which option of component class `cls` cannot be saved as JSON data and read again, and why; "" if all can.

    Components that are the defaults of slots are not looked up.
    """
    declared = _declared(cls)
    with suppress(ValidationError, SpecError, PydanticInvalidForJsonSchema):
        if all(default is not ... for _, default in declared.values()):
            _try(options_of(cls), defaults=True)
            return ""
    for name, (hint, default) in declared.items():  # one by one, to say which
        try:
            _try(_model(cls, {name: (hint, default)}), defaults=default is not ...)
        except (ValidationError, SpecError) as error:
            told = explain(error, "", []) if isinstance(error, ValidationError) else str(error)
            return f"option {name!r} does not take its default: {told.removeprefix(f'{name}: ')}"
        except PydanticInvalidForJsonSchema:
            return f"option {name!r} is annotated as {hint!r:.80}, whose values JSON cannot say"
    return ""


def _try(model: type[BaseModel], defaults: bool) -> None:
    """Save the defaults, read them again, and write the schema, which would leave out a default that is no JSON, and warn."""
    if defaults:
        model.model_validate(as_json(model.model_validate({}, context=SHAPE_ONLY), ""), context=SHAPE_ONLY)
    model.model_json_schema(schema_generator=OptionsSchema)


def _declared(cls: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each option, `...` where it has none."""
    fields: dict[str, tuple[Any, Any]] = {}
    for owner in signature_chain(cls):
        constructor = vars(owner)["__init__"]
        hints = typing.get_type_hints(constructor, include_extras=True)
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in fields:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[parameter.name] = (hints.get(parameter.name, Any), default)
    for name in fields:
        if name in ("name", "options"):
            raise TypeError(f"{cls.__qualname__} has an option called {name!r}, which in a spec means the component's "
                            f"own {name}")
        if name.startswith("_") or hasattr(BaseModel, name):  # pydantic would leave it out, or put its value before a method
            raise TypeError(f"{cls.__qualname__} has an option called {name!r}, a name that pydantic needs for itself; "
                            "choose another name")
    return fields


def _model(cls: type, fields: Mapping[str, Any]) -> type[Options]:
    return create_model(f"{cls.__name__}Options", __base__=Options, **fields)


def complete(cls: type, options: dict[str, Any], where: str) -> dict[str, Any]:
    """`options` as JSON data, validated and with every default filled in.

    Raises:
        SpecError: naming the option, what was found, what was expected and the nearest right name.
    """
    model = options_of(cls)
    try:
        return as_json(model.model_validate(options), where)
    except ValidationError as error:
        raise SpecError(explain(error, where, list(model.model_fields))) from None


def as_json(options: BaseModel, where: str) -> dict[str, Any]:
    """Options as a spec saves them: JSON data.

    Raises:
        SpecError: naming the option whose value JSON cannot say.
    """
    data: dict[str, Any] = {}
    for name, value in options:
        try:
            data |= options.model_dump(mode="json", include={name})
            json.dumps(data[name], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{where}{'.' if where else ''}{name}: expected what JSON can say; found {value!r:.80}") from error
    return data


def _sorted(value: Any, data: Any) -> Any:
    """`data`, the JSON form of `value`, with the elements of a set in an order that is the same in every process."""
    if isinstance(value, Mapping) and isinstance(data, dict):
        return {key: _sorted(one, data[key]) for key, one in zip(data, value.values(), strict=True)}
    if not isinstance(data, list):
        return data
    data = [_sorted(one, other) for one, other in zip(value, data, strict=True)]
    if isinstance(value, Set):
        try:
            data.sort()
        except TypeError:  # of several types
            data.sort(key=json.dumps)
    return data


def arguments(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the constructor of `cls`: the options with their Python types."""
    return dict(options_of(cls).model_validate(options))


def explain(error: ValidationError, where: str, names: list[str]) -> str:
    """pydantic's findings as sentences: the field, what was found, what was expected, the nearest right name."""
    lines = []
    for found in error.errors(include_url=False):
        field = ".".join([where, *map(str, found["loc"])] if where else list(map(str, found["loc"])))
        last = str(found["loc"][-1]) if found["loc"] else ""
        if found["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no {last!r} here{did_you_mean(last, names) or _choices(names)}")
        elif found["type"] == "missing":
            lines.append(f"{field}: missing")
        elif found["type"] == "component":
            lines.append(f"{field}: {found['msg']}")
        else:
            value = repr(found["input"])
            value = value if len(value) <= 80 else value[:77] + "..."
            message = found["msg"].removeprefix("Value error, ")
            lines.append(f"{field or 'spec'}: {message[:1].lower()}{message[1:]}; found {value}")
    return "\n".join(lines)


def _choices(names: list[str]) -> str:
    return f"; there are: {', '.join(names)}" if names else "; it takes none"
