"""The constructor is the schema: a component's options are the keyword-only parameters of its constructor.

One pydantic model is derived from them. It validates options, gives their JSON schema, and serves `describe` and the saved
spec, so the values of options are JSON data. `**options` in a constructor means "and those of my parent". Nothing else is read
from a signature, and nothing is injected because of a parameter's name.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Hashable, Mapping, Set
from contextlib import suppress
from functools import cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_serializer,
    field_validator,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from .errors import SpecError, did_you_mean
from .signatures import signature_chain

SHAPE_ONLY = {"shape only": True}
"""The pydantic context of a validation that does not look up components named by options."""


def refuse_truth_values(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """A validator of fields that refuses true and false for a number: pydantic would read them as 1 and 0."""
    if isinstance(value, bool) and info.field_name is not None:
        allowed = _alternatives(cls.model_fields[info.field_name].annotation)
        if allowed & {int, float} and not allowed & {bool, Any}:
            raise ValueError("expected a number, not true or false")
    return value


def _alternatives(annotation: Any) -> set[Any]:
    """The types that an annotation allows, each without what `Annotated` adds."""
    if typing.get_origin(annotation) is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {one for part in typing.get_args(annotation) for one in _alternatives(part)}
    return {annotation} if isinstance(annotation, Hashable) else set()


class Options(BaseModel):
    """Base of the derived models. JSON has no infinity, which would be read again as null, so no option may be infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True,
                              allow_inf_nan=False, ser_json_inf_nan="constants", protected_namespaces=())

    _numbers_are_numbers = field_validator("*", mode="before")(refuse_truth_values)

    @field_serializer("*", mode="wrap", when_used="json")
    def _in_order(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return _sorted(value, handler(value))


class OptionsSchema(GenerateJsonSchema):
    """JSON schema whose defaults are written as a spec saves them."""

    def encode_default(self, dft: Any) -> Any:
        return _sorted(dft, super().encode_default(dft))


@cache
def options_of(cls: type) -> type[BaseModel]:
    """The pydantic model of the options of component class `cls`.

    Raises:
        TypeError: an option has a name that specs or pydantic use for something else.
    """
    return _model(cls, _declared(cls))


def unserialisable_option(cls: type) -> str:
    """Which option of component class `cls` cannot be saved as JSON and read again, and why; "" if all can.

    An option's default that names a component is not looked up.
    """
    declared = _declared(cls)
    with suppress(ValidationError, SpecError, PydanticInvalidForJsonSchema):
        if all(default is not ... for _, default in declared.values()):
            _try(options_of(cls), defaults=True)
            return ""
    for name, (hint, default) in declared.items():  # something is wrong: try them one by one, to say which
        try:
            _try(_model(cls, {name: (hint, default)}), defaults=default is not ...)
        except (ValidationError, SpecError) as error:
            problem = explain(error, "", []) if isinstance(error, ValidationError) else str(error)
            return f"option {name!r} does not take its default: {problem.removeprefix(f'{name}: ')}"
        except PydanticInvalidForJsonSchema:
            return f"option {name!r} is annotated as {hint!r:.80}, whose values JSON cannot say"
    return ""


def _try(model: type[BaseModel], defaults: bool) -> None:
    """Save the defaults, read them again, and write the schema, which reports a default that JSON cannot say."""
    if defaults:
        model.model_validate(as_json(model.model_validate({}, context=SHAPE_ONLY), ""), context=SHAPE_ONLY)
    model.model_json_schema(schema_generator=OptionsSchema)


def _declared(cls: type) -> dict[str, tuple[Any, Any]]:
    """The annotation and the default of each option; the default is `...` if there is none."""
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
        if name.startswith("_") or hasattr(BaseModel, name):  # pydantic would drop it, or its value would hide a method
            raise TypeError(f"{cls.__qualname__} has an option called {name!r}, a name that pydantic needs for itself; "
                            "choose another name")
    return fields


def _model(cls: type, fields: Mapping[str, Any]) -> type[Options]:
    return create_model(f"{cls.__name__}Options", __base__=Options, **fields)


def complete(cls: type, options: dict[str, Any], where: str) -> dict[str, Any]:
    """Validate `options` and fill in every default; the result is JSON data.

    Raises:
        SpecError: names the option, what was found, what was expected and the nearest right name.
    """
    model = options_of(cls)
    try:
        return as_json(model.model_validate(options), where)
    except ValidationError as error:
        raise SpecError(explain(error, where, list(model.model_fields))) from None


def as_json(options: BaseModel, where: str) -> dict[str, Any]:
    """Turn validated options into JSON data, as a spec saves them.

    Raises:
        SpecError: names the option whose value JSON cannot say.
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
    """Put the elements of sets into an order that is equal in every process.

    Args:
        value: a Python value, in which sets can be told from lists.
        data: its JSON form.
    """
    if isinstance(value, Mapping) and isinstance(data, dict):
        return {key: _sorted(item, data[key]) for key, item in zip(data, value.values(), strict=True)}
    if not isinstance(data, list):
        return data
    data = [_sorted(item, item_data) for item, item_data in zip(value, data, strict=True)]
    if isinstance(value, Set):
        try:
            data.sort()
        except TypeError:  # elements of several types have no order of their own
            data.sort(key=json.dumps)
    return data


def arguments(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Turn options into keyword arguments for the constructor of `cls`, with their Python types."""
    return dict(options_of(cls).model_validate(options))


def explain(error: ValidationError, where: str, names: list[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """Say pydantic's errors in sentences: the field, what was found, what was expected, the nearest right name.

    Args:
        error: pydantic's.
        where: path of the model in a larger spec; "" if it is the whole.
        names: the names that a field may have.
        elsewhere: fields of other places that may have been meant, by name, each as it is written from here.
    """
    lines, elsewhere = [], elsewhere or {}
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        field = ".".join([where, *path] if where else path)
        last = path[-1] if path else ""
        if detail["type"] == "extra_forbidden":
            hint = did_you_mean(last, [*names, *elsewhere], settings=True, shown=elsewhere)
            lines.append(f"{field}: there is no {last!r} here{hint or _choices(names)}")
        elif detail["type"] == "missing":
            lines.append(f"{field}: missing")
        elif detail["type"] == "component":
            lines.append(f"{field}: {detail['msg']}")
        else:
            value = repr(detail["input"])
            value = value if len(value) <= 80 else value[:77] + "..."
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{field or 'spec'}: {message[:1].lower()}{message[1:]}; found {value}")
    return "\n".join(lines)


def _choices(names: list[str]) -> str:
    return f"; there are: {', '.join(names)}" if names else "; it takes none"
