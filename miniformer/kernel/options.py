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
    """Base of the models that are derived: what they have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True,
                              allow_inf_nan=False, protected_namespaces=())  # JSON has no infinity: it would be read as null

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


def misfit(cls: type) -> str:
    """Why an option of component class `cls` cannot be saved and read again as JSON, or its default does not fit; "" if all do.

    Components that are defaults of slots are not looked up.
    """
    for name, declared in _declared(cls).items():
        model = _model(cls, {name: declared})
        try:
            defaults = {} if declared[1] is ... else as_json(model.model_validate({}, context=SHAPE_ONLY))
            model.model_validate(defaults or {name: None}, context=SHAPE_ONLY)
        except ValidationError as error:
            if declared[1] is not ...:
                return f"option {explain(error, '', [], quoted=True)}, its default"
        except SpecError as error:
            return f"option {error}"
        try:
            model.model_json_schema()
        except PydanticInvalidForJsonSchema:
            return f"option {name!r}: its values cannot be written as JSON; annotated as {declared[0]!r:.80}"
    return ""


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
    for reserved in ("name", "options"):
        if reserved in fields:
            raise TypeError(f"{cls.__qualname__} has an option called {reserved!r}, which in a spec means the component's "
                            f"own {reserved}")
    return create_model(f"{cls.__name__}Options", __config__=ConfigDict(extra="forbid", frozen=True,
                        validate_default=True, arbitrary_types_allowed=True), **fields)


def complete(cls: type, options: dict[str, Any], where: str) -> dict[str, Any]:
    """`options` as JSON data, validated and with every default filled in.

    Raises:
        SpecError: naming the option, what was found, what was expected and the nearest right name.
    """
    model = options_of(cls)
    try:
        return model.model_validate(options).model_dump(mode="json")
    except ValidationError as error:
        raise SpecError(explain(error, where, list(model.model_fields))) from None


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
