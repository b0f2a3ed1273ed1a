import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.kernel import (
    Attention,
    ComponentSpec,
    Entry,
    FeedForward,
    Norm,
    PositionEncoding,
    Registry,
    SpecError,
    UnknownComponent,
    build,
    resolve,
    use_registry,
)
from miniformer.kernel.spec import Slot
from miniformer.model.feedforward import GELU, SwiGLU
from miniformer.model.norm import RMSNorm

names = st.text(min_size=1).filter(lambda name: name not in ("name", "options"))
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                      | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


class Twice(FeedForward):
    """Applies another one twice."""

    def __init__(self, d_model: int, d_ff: int, *, inner: Slot[FeedForward] = "gelu") -> None:
        super().__init__(d_model, d_ff)
        self.inner = build(FeedForward, inner, d_model, d_ff)

    def forward(self, x, context):
        return self.inner(self.inner(x, context), context)


TWICE = Entry("ffn", "twice", f"{__name__}:Twice", "acme", "1.0")


@pytest.fixture
def with_twice():
    gelu = Entry("ffn", "gelu", "miniformer.model.feedforward:GELU", "miniformer", "0")
    with use_registry(Registry([TWICE, gelu])):
        yield


@pytest.mark.parametrize("form", [
    {"name": "swiglu", "bias": True},
    {"name": "swiglu", "options": {"bias": True}},
    ComponentSpec(name="swiglu", options={"bias": True}),
])
def test_a_spec_has_a_flat_and_an_explicit_form(form):
    assert ComponentSpec.model_validate(form) == ComponentSpec(name="swiglu", options={"bias": True})


def test_a_string_is_a_spec_without_options():
    assert ComponentSpec.model_validate("swiglu") == ComponentSpec(name="swiglu")


@given(st.text(), st.dictionaries(names, values, max_size=4))
def test_a_spec_survives_json(name, options):
    spec = ComponentSpec(name=name, options=options)
    assert ComponentSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_the_json_form_is_flat():
    assert ComponentSpec(name="mha", options={"window": 4}).model_dump(mode="json") == {"name": "mha", "window": 4}


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ComponentSpec(name="mha").name = "other"


def test_resolving_fills_in_every_option():
    assert resolve("norm", "rmsnorm") == ComponentSpec(name="rmsnorm", options={"eps": 1e-6})


def test_resolving_is_idempotent():
    once = resolve("attention", {"name": "mha", "window": 4})
    assert resolve("attention", once) == once


def test_resolving_stores_the_short_name_of_a_built_in():
    assert resolve("ffn", "miniformer:SwiGLU").name == "swiglu"


def test_resolving_stores_the_qualified_name_of_a_third_partys(with_twice):
    assert resolve("ffn", "twice").name == "acme:twice"


@pytest.mark.parametrize("value", [5, None, ["swiglu"], {"bias": True}, {"name": 5}, {"name": None}])
def test_what_is_no_spec_is_told_what_one_is(value):
    with pytest.raises(SpecError, match=r"ffn(: expected a name or a mapping|\.name: input should be a valid string)"):
        resolve("ffn", value)


def test_build_gives_a_component_of_the_sizes_and_options():
    ffn = build(FeedForward, {"name": "swiglu", "bias": True}, 4, 6)
    assert type(ffn) is SwiGLU
    assert (ffn.d_model, ffn.d_ff, ffn.down.bias is not None) == (4, 6, True)


def test_build_takes_every_form_of_a_spec():
    assert type(build(FeedForward, "gelu", 4, 6)) is GELU
    assert type(build(Norm, ComponentSpec(name="rmsnorm"), 4)) is RMSNorm


def test_build_makes_components_within_components(with_twice):
    ffn = build(FeedForward, {"name": "acme:twice", "inner": {"name": "gelu", "bias": True}}, 4, 6)
    assert type(ffn.inner) is GELU
    assert ffn.inner.down.bias is not None
    assert ffn(torch.ones(1, 2, 4)).shape == (1, 2, 4)


def test_build_tells_why_sizes_are_refused():
    with pytest.raises(SpecError, match="attention mha: d_model 10 must be a multiple of n_heads 4"):
        build(Attention, "mha", 10, 4)


def test_build_tells_of_an_unknown_component():
    with pytest.raises(UnknownComponent, match="there is no norm named 'swiglu'"):
        build(Norm, "swiglu", 4)


def test_build_tells_of_an_unknown_option():
    with pytest.raises(SpecError, match=r"position rope\.theta: there is no 'theta' here"):
        build(PositionEncoding, {"name": "rope", "theta": 1.0}, 8, 2, 16)


def test_only_interfaces_of_kinds_are_built():
    with pytest.raises(TypeError, match="GELU is the interface of no kind"):
        build(GELU, "gelu", 4, 6)


def test_a_dotted_path_is_no_name():
    with pytest.raises(UnknownComponent):
        resolve("ffn", "miniformer.model.feedforward:GELU")
