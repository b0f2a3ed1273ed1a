import copy
import math
import pickle
import re
import subprocess
import sys

import pytest
import yaml
from depth import thorough
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from miniformer.config.model_config import LayerSpec, TransformerConfig
from miniformer.kernel import (
    Attention,
    ComponentSpec,
    Entry,
    PositionEncoding,
    Registry,
    SpecError,
    UnavailableComponent,
    UnknownComponent,
    UserError,
    discover,
    use_registry,
)
from miniformer.kernel.registry import Availability
from miniformer.model.attention import MultiHeadAttention

SMALL = {"d_model": 16, "n_heads": 2, "vocab_size": 11}
RICH = {**SMALL, "causal": True, "ffn": {"name": "gelu", "bias": True}, "max_seq_len": 32, "dropout": 0.1, "layers": [
    {"repeat": 2, "attention": {"name": "mha", "window": 4}}, {"position": "none", "norm": "layernorm"}]}


class LooksBack(Attention):
    """Can only look back, and honours no position encoding."""

    causal_only = True
    applies = frozenset()

    def forward(self, x, context, state=None):
        return x


class Narrow(MultiHeadAttention):
    shorthand_for = {"attention": {"name": "mha", "window": 2}, "position": {"name": "rope", "base": 500.0}}

    def __init__(self, d_model, n_heads, **options):
        super().__init__(d_model, n_heads, **options)


class Slope(PositionEncoding):
    def bias(self, q_positions, k_positions):
        return None


def config(**fields):
    return TransformerConfig(**{**SMALL, **fields})


def refused(**fields):
    with pytest.raises(UserError) as error:
        config(**fields)
    return str(error.value)


@pytest.fixture
def with_own_parts():
    entries = [Entry("attention", "looks-back", f"{__name__}:LooksBack", "acme", "1.0"),
               Entry("attention", "narrow", f"{__name__}:Narrow", "acme", "1.0"),
               Entry("position", "slope", f"{__name__}:Slope", "acme", "1.0")]
    with use_registry(Registry([*discover(plugins="none"), *entries])):
        yield


# --- the explicit form

def test_every_default_is_filled_in():
    found = config()
    assert {slot: getattr(found, slot).name for slot in ("attention", "position", "ffn", "norm", "head")} == {
        "attention": "mha", "position": "rope", "ffn": "swiglu", "norm": "rmsnorm", "head": "lm"}
    assert found.ffn.options == {"bias": False}


@pytest.mark.parametrize(("fields", "d_ff"), [
    ({}, 64), ({"d_ff": 0}, 64), ({"d_ff": 24}, 24), ({"d_model": 32}, 128), ({"d_model": 32.0}, 128),
    ({"d_model": "32"}, 128)])
def test_the_feed_forward_is_four_times_as_wide_as_the_model_unless_given(fields, d_ff):
    assert config(**fields).d_ff == d_ff


def test_the_head_classifies_where_there_is_an_output_width():
    assert (config().head.name, config().n_outputs) == ("lm", 11)
    assert (config(output_dim=3).head.name, config(output_dim=3).n_outputs) == ("classification", 3)
    assert config(output_dim=3, head="lm").head.name == "lm"


@pytest.mark.parametrize("name", ["swiglu", "SwiGLU", "miniformer:swiglu"])
def test_equal_models_have_equal_configs_however_they_are_written(name):
    assert config(ffn=name) == config(ffn={"name": "swiglu", "bias": False}) == config()


# --- shorthands

@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu", "geglu", "relu2"])
def test_activation_is_short_for_a_feed_forward(activation):
    assert config(activation=activation) == config(ffn=activation)


def test_activation_may_repeat_what_ffn_says():
    assert config(activation="gelu", ffn={"name": "gelu", "bias": True}).ffn.options == {"bias": True}


def test_rotary_pct_is_short_for_rope():
    assert config(rotary_pct=0.5) == config(position={"name": "rope", "pct": 0.5})


def test_no_rotation_means_sinusoidal_positions():
    assert config(rotary_pct=0) == config(position="sinusoidal")


@pytest.mark.parametrize("position", ["rope", {"name": "rope", "base": 500.0}, {"name": "rope", "pct": 0.5}])
def test_rotary_pct_completes_a_rope_that_is_named(position):
    assert config(rotary_pct=0.5, position=position).position.options["pct"] == 0.5


@pytest.mark.parametrize(("fields", "text"), [
    ({"activation": "relu", "ffn": "gelu"}, "activation='relu' is short for ffn='relu', and ffn is 'gelu'"),
    ({"activation": "tanh"}, "there is no ffn named 'tanh'"),
    ({"activation": 3}, "activation: expected the name of a feed-forward; found 3"),
    ({"rotary_pct": 0.5, "position": "learned"}, "rotary_pct=0.5 is short for position="),
    ({"rotary_pct": 0, "position": "rope"}, "rotary_pct=0 is short for position="),
    ({"rotary_pct": 0.5, "position": {"name": "rope", "pct": 1.0}}, "give one of them"),
    ({"rotary_pct": 2}, "rotary_pct: input should be less than or equal to 1; found 2"),
    ({"rotary_pct": -0.5}, "rotary_pct: input should be greater than or equal to 0; found -0.5"),
    ({"rotary_pct": float("nan")}, "rotary_pct: input should be a finite number; found nan"),
    ({"rotary_pct": "half"}, "rotary_pct: input should be a valid number"),
    ({"pre_norm": True, "norm_placement": "sandwich"}, "pre_norm=True is short for norm_placement='pre', and norm_placement "
                                                       "is 'sandwich'; give one of them"),
    ({"pre_norm": "yes"}, "pre_norm: expected true or false; found 'yes'"),
    ({"norm_placement": "middle"}, "norm_placement: input should be 'pre', 'post' or 'sandwich'; found 'middle'"),
])
def test_shorthands_that_contradict_are_refused(fields, text):
    assert text in refused(**fields)


@pytest.mark.parametrize(("pre_norm", "placement"), [(True, "pre"), (False, "post")])
def test_pre_norm_is_short_for_a_placement_of_norms(pre_norm, placement):
    assert config(pre_norm=pre_norm) == config(norm_placement=placement) == config(pre_norm=pre_norm, norm_placement=placement)
    assert config(norm_placement="sandwich").with_fields(pre_norm=pre_norm) == config(pre_norm=pre_norm)


@pytest.mark.parametrize(("name", "meant"), [
    ("mqa", {"n_kv_heads": 1}), ("gqa", {"n_kv_heads": 2}), ("sliding-window", {"window": 128}),
    ({"name": "mqa", "window": 4}, {"n_kv_heads": 1, "window": 4}), ({"name": "gqa", "n_kv_heads": 1}, {"n_kv_heads": 1})])
def test_a_shorthand_with_options_is_what_it_stands_for_unless_told_otherwise(name, meant):
    assert config(attention=name) == config(attention={"name": "mha", **meant})


def test_gqa_needs_an_even_number_of_heads():
    assert "n_heads 3 must be a multiple of n_kv_heads 2" in refused(attention="gqa", d_model=24, n_heads=3)


def test_a_shorthand_may_stand_for_another_slot_with_options(with_own_parts):
    meant = config(attention={"name": "mha", "window": 2}, position={"name": "rope", "base": 500.0})
    assert config(attention="narrow") == meant


def test_rope_mha_is_mha_with_rope():
    assert config(attention="rope-mha") == config(attention="mha", position="rope")


def test_rope_mha_keeps_its_options():
    assert config(attention={"name": "rope-mha", "window": 4}) == config(attention={"name": "mha", "window": 4})


def test_a_position_that_is_named_wins_over_the_default_of_rope_mha():
    assert config(attention="rope-mha", position="learned") == config(attention="mha", position="learned")


def test_rope_mha_in_a_layer_brings_rope_to_that_layer():
    found = config(position="none", layers=[{"attention": "rope-mha"}, {}])
    assert [layer.position.name for layer in found.layer_specs()] == ["rope", "none"]


# --- patterns of layers

def test_n_layers_follows_from_a_pattern():
    assert config(layers=[{"repeat": 3}, {"norm": "layernorm"}]).n_layers == 4


@pytest.mark.parametrize("layers", [[{"repeat": 3}], [{}, {"repeat": 1}, {}]])
def test_n_layers_may_repeat_what_a_pattern_says(layers):
    assert config(n_layers=3, layers=layers).n_layers == 3


@pytest.mark.parametrize(("fields", "text"), [
    ({"n_layers": 2, "layers": [{"repeat": 3}]}, "n_layers is 2, but the pattern in layers has 3"),
    ({"layers": [{"repeat": 0}]}, "layers.0.repeat: expected a whole number from 1 on; found 0"),
    ({"layers": [{}, {"repeat": "x"}]}, "layers.1.repeat: expected a whole number from 1 on; found 'x'"),
    ({"layers": [{"atention": "mha"}]}, "there is no 'atention' here; did you mean 'attention'"),
    ({"layers": ["mha"]}, "layers: expected a list of mappings"),
    ({"layers": 5}, "layers: expected a list of mappings"),
    ({"layers": [{"ffn": "swigl"}]}, "there is no ffn named 'swigl'"),
    ({"layers": [{"ffn": {"name": "swiglu", "bais": True}}]}, "ffn swiglu.bais: there is no 'bais' here"),
])
def test_patterns_that_make_no_sense_are_refused(fields, text):
    assert text in refused(**fields)


def test_without_a_pattern_all_layers_are_alike():
    found = config(n_layers=3)
    assert found.layer_specs() == [LayerSpec(attention=found.attention, position=found.position, ffn=found.ffn,
                                             norm=found.norm)] * 3


def test_a_layer_overrides_the_models_parts_and_inherits_the_rest():
    found = config(ffn="gelu", layers=[{"repeat": 2, "attention": {"name": "mha", "window": 4}}, {"ffn": "relu"}])
    assert [(layer.attention.options["window"], layer.ffn.name) for layer in found.layer_specs()] == [
        (4, "gelu"), (4, "gelu"), (None, "relu")]


@pytest.mark.parametrize("position", ["learned", {"name": "sinusoidal", "base": 100.0}])
def test_an_encoding_of_the_embedding_cannot_be_one_layers(position):
    assert "works on the embedding" in refused(position="sinusoidal", layers=[{"position": position}])


def test_a_layer_may_repeat_the_models_encoding_of_the_embedding():
    assert config(position="learned", layers=[{"position": "learned"}]).layer_specs()[0].position.name == "learned"


# --- round trips

@pytest.mark.parametrize("fields", [{}, RICH, {"input_dim": 3, "output_dim": 2}, {"attention": "rope-mha"}])
def test_a_config_survives_json_and_yaml(fields):
    found = config(**fields)
    assert TransformerConfig.model_validate_json(found.model_dump_json()) == found
    assert TransformerConfig.model_validate(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))) == found


@given(st.fixed_dictionaries({}, optional={
    "n_layers": st.integers(1, 4), "d_ff": st.integers(1, 40), "causal": st.booleans(), "parallel": st.booleans(),
    "norm_placement": st.sampled_from(["pre", "post", "sandwich"]),
    "dropout": st.floats(0, 0.9), "rotary_pct": st.sampled_from([0, 0.25, 0.5, 1]),
    "activation": st.sampled_from(["gelu", "relu", "swiglu"]), "norm": st.sampled_from(["rmsnorm", "layernorm"]),
    "attention": st.sampled_from(["mha", "rope-mha", "mqa", {"name": "mha", "qk_norm": "layernorm", "sinks": True}, "mla"]),
    "output_dim": st.none() | st.integers(1, 5)}))
def test_validating_again_changes_nothing(fields):
    found = config(**fields)
    assert TransformerConfig.model_validate(found.model_dump(mode="json")) == found
    assert TransformerConfig.model_validate(found) is found


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, TransformerConfig.model_copy,
                                   lambda c: c.model_copy(deep=True), lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_is_equal(clone):
    found = config(**RICH)
    assert clone(found) == found


def test_with_fields_validates_again():
    assert config(**RICH).with_fields(dropout=0.5).dropout == 0.5
    with pytest.raises(SpecError, match="dropout: input should be less than 1; found 2"):
        config().with_fields(dropout=2)


def test_a_shorthand_in_with_fields_replaces_what_it_is_short_for():
    changed = config().with_fields(rotary_pct=0.5, activation="relu")
    assert (changed.position.options["pct"], changed.ffn.name) == (0.5, "relu")


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        config().d_model = 3


# --- what is refused

@pytest.mark.parametrize(("fields", "text"), [
    ({"d_modle": 8}, "d_modle: there is no 'd_modle' here; did you mean 'd_model'?"),
    ({"activatoin": "gelu"}, "did you mean 'activation'"),
    ({"d_model": 0}, "d_model: input should be greater than or equal to 1; found 0"),
    ({"d_model": -8}, "d_model: input should be greater than or equal to 1; found -8"),
    ({"d_model": "wide"}, "d_model: input should be a valid integer"),
    ({"d_model": None}, "d_model: input should be a valid integer; found None"),
    ({"d_model": math.inf}, "d_model: input should be a finite number; found inf"),
    ({"d_ff": False}, "d_ff: expected a number, not true or false; found False"),
    ({"d_ff": []}, "d_ff: input should be a valid integer; found []"),
    ({"eos_id": 10**400}, "eos_id: input should be less than or equal to 2147483647"),
    ({"dropout": 1.0}, "dropout: input should be less than 1; found 1.0"),
    ({"causal": "perhaps"}, "causal: input should be a valid boolean"),
    ({"d_model": 10, "n_heads": 4}, "attention mha: d_model 10 must be a multiple of n_heads 4"),
    ({"attention": {"name": "mha", "n_kv_heads": 3}}, "n_heads 2 must be a multiple of n_kv_heads 3"),
    ({"attention": {"name": "mha", "dropout": 2}}, "attention mha.dropout: input should be less than 1; found 2"),
    ({"attention": {"name": "mha", "window": True}}, "attention mha.window: expected a number, not true or false; found True"),
    ({"attention": {"name": "mha", "windw": 2}}, "mha.windw: there is no 'windw' here; did you mean 'window'?"),
    ({"attention": {"name": "mha", "kernel": "sdpa", "softcap": 5}}, "attention mha: kernel 'sdpa' cannot do softcap"),
    ({"attention": {"name": "mha", "kernel": "fast"}}, "mha.kernel: input should be 'auto', 'fused', 'blockwise'"),
    ({"attention": {"name": "mha", "qk_norm": "rmsnom"}}, "attention mha.qk_norm: there is no norm named 'rmsnom'"),
    ({"attention": {"name": "mha", "kernel": "flex"}, "position": "t5-bias"},
     "position 't5-bias' learns a bias, to which attention 'mha' with kernel 'flex' gives no gradient"),
    ({"attention": "linear", "position": "alibi"}, "position 'alibi' needs bias, which attention 'linear' does not apply"),
    ({"attention": {"name": "mla", "d_rotary": 1}}, "position rope: pct 1.0 of a head of 1 elements"),
    ({"ffn": {"name": "mlp", "activation": "swish"}}, "ffn mlp.activation: input should be 'gelu', 'gelu-tanh'"),
    ({"position": {"name": "rope", "factor": 2}}, "position rope: factor 2.0 needs a scaling"),
    ({"position": {"name": "t5-bias", "n_buckets": 7}}, "position t5-bias: n_buckets 7 must be even"),
    ({"rotary_pct": 0.1}, "position rope: pct 0.1 of a head of 8 elements"),
    ({"ffn": "swigl"}, "there is no ffn named 'swigl'\n  did you mean: swiglu"),
    ({"ffn": "moe"}, "pip install miniformer-moe"),
    ({"ffn": "mha"}, "there is an attention of that name"),
    ({"ffn": {}}, "ffn: expected a name or a mapping with a 'name'; found {}"),
    ({"ffn": False}, "ffn: expected a name or a mapping with a 'name'; found False"),
    ({"layers": [{"atention": "mha"}]}, "layers.0.atention: there is no 'atention' here; did you mean 'attention'"),
    ({"layers": [{"repeat": True}]}, "layers.0.repeat: expected a whole number from 1 on; found True"),
    ({"ffn": 5}, "ffn: expected a name or a mapping with a 'name'; found 5"),
    ({"ffn": {"bias": True}}, "ffn: expected a name or a mapping with a 'name'; found {'bias': True}"),
    ({"ffn": {"name": 3}}, "ffn.name: input should be a valid string; found 3"),
    ({"head": {"name": "lm", "tied": "maybe"}}, "head lm.tied: input should be a valid boolean"),
    ({"input_dim": 3}, "input_dim: feature inputs have no vocabulary to predict; give output_dim"),
])
def test_a_mistake_is_told_with_its_field_and_without_pydantics_links(fields, text):
    found = refused(**fields)
    assert text in found
    assert "pydantic" not in found


@pytest.mark.parametrize("value", [5, "mha", [1, 2], None])
def test_a_config_is_a_mapping(value):
    with pytest.raises(SpecError, match="a model config is a mapping of fields"):
        TransformerConfig.model_validate(value)


@pytest.mark.parametrize("field", ["vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_seq_len", "input_dim",
                                   "output_dim"])
@pytest.mark.parametrize("value", [10**10, 10**20])
def test_a_size_beyond_what_a_tensor_can_have_is_told_with_its_field(field, value):
    assert re.fullmatch(rf"{field}: input should be less than or equal to \d+; found {value}", refused(**{field: value}))


def test_the_largest_sizes_are_within_what_a_tensor_can_have():
    most = 2**31 - 1
    assert TransformerConfig(d_model=2**20, d_ff=2**22, n_heads=2**12, vocab_size=most, max_seq_len=most).max_seq_len == most


def test_a_key_that_is_no_string_is_told():
    with pytest.raises(SpecError, match="1"):
        TransformerConfig.model_validate({1: 2})


def test_all_wrong_fields_are_told_at_once():
    assert len(refused(dropout=2, causal="perhaps", d_modle=3).splitlines()) == 3


def test_an_attention_that_only_looks_back_needs_a_causal_model(with_own_parts):
    assert config(attention="looks-back", position="none", causal=True).attention.name == "acme:looks-back"
    assert "only looks back, so it cannot serve a model in which tokens see later ones" in refused(
        attention="looks-back", position="none")


@pytest.mark.parametrize(("position", "hook"), [("rope", "rotate"), ("slope", "bias")])
def test_an_attention_must_honour_what_the_position_encoding_needs(with_own_parts, position, hook):
    assert f"needs {hook}, which attention 'acme:looks-back' does not apply" in refused(
        attention="looks-back", position=position, causal=True)


def test_an_encoding_of_the_embedding_suits_every_attention(with_own_parts):
    assert config(attention="looks-back", position="learned", causal=True).position.name == "learned"


def test_parts_of_a_layer_must_fit_too(with_own_parts):
    assert "needs rotate" in refused(causal=True, layers=[{}, {"attention": "looks-back"}])


def test_a_component_that_is_blocked_is_told():
    blocked = Entry("ffn", "fine", "x:Y", "acme", "1.0", Availability.BLOCKED, "restricted")
    with use_registry(Registry([*discover(plugins="none"), blocked])), pytest.raises(UnavailableComponent):
        config(ffn="fine")


def test_a_name_that_a_config_holds_imports_nothing_that_is_not_registered():
    with pytest.raises(UnknownComponent):
        config(ffn=ComponentSpec(name="os:system"))


def test_an_unknown_name_is_told_before_torch_is_imported(fresh_python):
    assert fresh_python("""
import sys
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import UnknownComponent
for fields in ({'ffn': 'swigl'}, {'layers': [{'attention': {'name': 'mhaa', 'window': 2}}]}):
    try:
        TransformerConfig(**fields)
    except UnknownComponent:
        print('torch' in sys.modules)""").split() == ["False", "False"]


@thorough
@pytest.mark.slow
def test_type_checkers_take_the_forms_that_it_takes(tmp_path):
    call = tmp_path / "call.py"
    call.write_text("from miniformer.config.model_config import TransformerConfig\n"
                    "config = TransformerConfig(attention='mha', activation='swiglu', position={'name': 'rope', 'pct': 0.5})\n"
                    "name: str = config.attention.name\n")
    done = subprocess.run([sys.executable, "-m", "mypy", call], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
