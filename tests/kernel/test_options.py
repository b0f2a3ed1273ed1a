from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from miniformer.kernel import ComponentSpec, FeedForward, SpecError, options_of
from miniformer.kernel.options import OptionsSchema, arguments, complete, unserialisable_option
from miniformer.kernel.spec import Slot


class Gate(nn.Module):
    def __init__(self, d_model: int, d_ff: int = 8, *, width: Annotated[int, Field(ge=1, le=9)] = 4,
                 mode: Literal["hard", "soft"] = "soft", rate: float):
        super().__init__()


class Child(Gate):
    def __init__(self, d_model: int, d_ff: int, *, width: int = 100, sharp: bool = False, **options: Any):
        super().__init__(d_model, d_ff, width=width, **options)


class Closed(Gate):
    def __init__(self, d_model: int, d_ff: int, *, sharp: bool = False):
        super().__init__(d_model, d_ff, rate=1.0)


class Silent(Gate):
    pass


class Named(nn.Module):
    def __init__(self, *, name: str = "x"):
        super().__init__()


class Opted(nn.Module):
    def __init__(self, *, options: dict[str, int]):
        super().__init__()


class Mixture(nn.Module):
    def __init__(self, d_model: int, d_ff: int, *, inner: Slot[FeedForward] = "swiglu", experts: int = 4):
        super().__init__()


class Untyped(nn.Module):
    def __init__(self, *, act=None):
        super().__init__()


SETS = {"x": {10, 9, 2}}


class Grouped(nn.Module):
    def __init__(self, *, words: frozenset[str] = frozenset("hgfedcba"), sizes: dict[str, set[int]] = SETS,
                 mixed: frozenset[int | None] = frozenset({None, 1})):
        super().__init__()


def with_option(annotation, *default, name="given"):
    """A class with one option."""
    namespace = {"default": default}
    exec(f"def __init__(self, *, {name}{' = default[0]' if default else ''}): pass", namespace)
    namespace["__init__"].__annotations__ = {name: annotation}
    return type("Made", (), {"__init__": namespace["__init__"]})


def message(cls, **options):
    with pytest.raises(SpecError) as error:
        complete(cls, options, "ffn gate")
    return str(error.value)


def test_options_are_the_keyword_only_parameters():
    assert set(options_of(Gate).model_fields) == {"width", "mode", "rate"}


def test_a_class_without_a_constructor_has_its_parents_options():
    assert set(options_of(Silent).model_fields) == {"width", "mode", "rate"}


def test_star_star_options_means_and_my_parents():
    assert set(options_of(Child).model_fields) == {"sharp", "width", "mode", "rate"}


def test_an_option_that_a_child_declares_again_is_the_childs():
    assert complete(Child, {"rate": 1.0}, "")["width"] == 100


def test_without_star_star_options_the_parents_are_not_offered():
    assert set(options_of(Closed).model_fields) == {"sharp"}


def test_a_module_without_options_has_none():
    assert not options_of(nn.Identity).model_fields


def test_completing_fills_in_every_default():
    assert complete(Gate, {"rate": 0.5}, "") == {"width": 4, "mode": "soft", "rate": 0.5}


def test_an_option_without_a_default_is_needed():
    assert message(Gate) == "ffn gate.rate: missing"


def test_the_annotations_constraints_are_checked():
    assert message(Gate, rate=1.0, width=12) == ("ffn gate.width: input should be less than or equal to 9; found 12")


def test_a_wrong_choice_is_told_the_right_ones():
    text = message(Gate, rate=1.0, mode="firm")
    assert text == "ffn gate.mode: input should be 'hard' or 'soft'; found 'firm'"


def test_an_unknown_option_is_told_the_nearest():
    assert message(Gate, rate=1.0, widht=3) == "ffn gate.widht: there is no 'widht' here; did you mean 'width'?"


def test_an_unknown_option_that_is_near_nothing_is_told_all():
    assert message(Gate, rate=1.0, zzz=3) == "ffn gate.zzz: there is no 'zzz' here; there are: width, mode, rate"


def test_every_mistake_is_told_at_once():
    assert len(message(Gate, width=0, mode="firm").splitlines()) == 3


def test_long_values_are_cut_short_in_messages():
    assert len(message(Gate, rate="x" * 1000)) < 250


def test_a_positional_parameter_is_no_option():
    assert "there is no 'd_ff' here" in message(Gate, rate=1.0, d_ff=3)


@pytest.mark.parametrize(("cls", "name"), [(Named, "name"), (Opted, "options")])
def test_an_option_that_a_spec_could_not_tell_from_its_own_fields_is_refused(cls, name):
    with pytest.raises(TypeError, match=f"{cls.__name__} has an option called '{name}'"):
        options_of(cls)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["model_config", "model_dump", "json", "copy", "schema", "_secret"])
def test_an_option_whose_name_pydantic_needs_is_refused_and_not_left_out(name):
    with pytest.raises(TypeError, match=f"has an option called '{name}'.*; choose another name"):
        options_of(with_option(int, 1, name=name))


@pytest.mark.filterwarnings("error")
def test_other_names_that_begin_like_pydantics_are_options():
    assert complete(with_option(int, 1, name="model_dump_every"), {}, "") == {"model_dump_every": 1}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_cannot_say_is_refused(value):
    assert message(Gate, rate=value) == f"ffn gate.rate: input should be a finite number; found {value}"
    assert message(Untyped, act=[value]) == f"ffn gate.act: expected what JSON can say; found [{value}]"


def test_a_value_that_is_no_json_data_is_refused():
    assert message(Untyped, act=torch.relu).startswith("ffn gate.act: expected what JSON can say; found <built-in method relu")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("made", "told"), [
    (with_option(float, float("inf")), "option 'given' does not take its default: input should be a finite number; found inf"),
    (with_option(int, "many"), "option 'given' does not take its default: input should be a valid integer"),
    (with_option(Any, torch.relu), "option 'given' does not take its default: expected what JSON can say; found <built-in"),
    (with_option(torch.dtype, torch.float32),
     "option 'given' does not take its default: expected what JSON can say; found torch.float32"),
    (with_option(torch.dtype), "option 'given' is annotated as <class 'torch.dtype'>, whose values JSON cannot say"),
    (with_option(Callable[[int], int] | None, None), "option 'given' is annotated as "),
    (with_option(Slot[FeedForward], 3), "option 'given' does not take its default: "),
])
def test_an_option_that_cannot_be_saved_is_a_misfit(made, told):
    assert unserialisable_option(made).startswith(told)


@pytest.mark.parametrize("cls", [Gate, Child, Closed, nn.Identity, Untyped, Grouped, Mixture])
def test_what_can_be_saved_is_no_misfit(cls):
    assert unserialisable_option(cls) == ""


def test_a_default_of_a_slot_is_not_looked_up_before_it_is_used():
    made = with_option(Slot[FeedForward], "of a package that is not installed")
    assert unserialisable_option(made) == ""
    assert "there is no ffn named 'of a package that is not installed'" in message(made)


def test_sets_are_saved_in_one_order():
    assert complete(Grouped, {}, "") == {"words": list("abcdefgh"), "sizes": {"x": [2, 9, 10]}, "mixed": [1, None]}
    assert complete(Grouped, {"words": ["c", "b"]}, "")["words"] == ["b", "c"]
    schema = options_of(Grouped).model_json_schema(schema_generator=OptionsSchema)
    assert schema["properties"]["words"]["default"] == list("abcdefgh")


def test_a_slot_takes_a_component_of_its_kind_and_fills_in_its_options():
    assert complete(Mixture, {"inner": {"name": "gelu", "bias": True}}, "") == {
        "inner": {"name": "gelu", "bias": True}, "experts": 4}
    assert complete(Mixture, {}, "")["inner"] == {"name": "swiglu", "bias": False}


def test_a_mistake_in_a_slot_names_the_component():
    assert message(Mixture, inner={"name": "gelu", "bais": True}) == (
        "ffn gate.inner: ffn gelu.bais: there is no 'bais' here; did you mean 'bias'?")


def test_arguments_have_the_types_that_a_constructor_expects():
    found = arguments(Mixture, complete(Mixture, {}, ""))
    assert found == {"inner": ComponentSpec(name="swiglu", options={"bias": False}), "experts": 4}


def test_the_json_schema_says_defaults_and_constraints():
    width = options_of(Gate).model_json_schema()["properties"]["width"]
    assert (width["default"], width["minimum"], width["maximum"]) == (4, 1, 9)
