"""Counts are those of the model that is built, for any components."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from miniformer.config.matrix import names, refusal
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Entry, FeedForward, Registry, SpecError, StateError, discover, use_registry
from miniformer.model.counting import activation_bytes, flops_per_token, parameter_count, parts, state_bytes
from miniformer.model.transformer import Transformer

SIZES = {"vocab_size": 50, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 40, "max_seq_len": 32, "causal": True}


ATTENTIONS = [*names("attention"), *({"name": "mha", "n_kv_heads": k, "qk_norm": "rmsnorm", "sinks": True} for k in (1, 2))]


@given(st.sampled_from(names("ffn")), st.sampled_from(names("norm")), st.sampled_from(names("position")),
       st.sampled_from(ATTENTIONS), st.booleans(), st.sampled_from(["pre", "post", "sandwich"]), st.booleans())
def test_parameters_are_those_of_the_built_model(ffn, norm, position, attention, tied, placement, parallel):
    parts_given = {"ffn": ffn, "norm": norm, "position": position, "attention": attention}
    assume(not refusal("decoder", **parts_given))
    config = TransformerConfig(**SIZES, **parts_given, head={"name": "lm", "tied": tied}, norm_placement=placement,
                               parallel=parallel)
    built = sum(p.numel() for p in Transformer(config).parameters())
    assert parameter_count(config) == built
    assert sum(part.parameters for part in parts(config)) == built


def test_arithmetic_is_two_for_each_weight_and_four_for_each_score_and_width():
    config = TransformerConfig(**SIZES, ffn="gelu")
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 40) + 16 * 50  # two layers and the tied head
    scores = 2 * 32 * 16  # for each layer: q k^T and the weighted sum, over 32 keys
    assert flops_per_token(config, 32) == 2 * weights + 2 * scores * 2


@pytest.mark.parametrize("n_kv_heads", [4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_what_a_built_model_keeps(n_kv_heads, dtype):
    config = TransformerConfig(**SIZES, attention={"name": "mha", "n_kv_heads": n_kv_heads})
    built = Transformer(config).to(dtype).init_state(3, 20)
    assert state_bytes(config, 3, 20, dtype) == built.nbytes == 2 * 2 * 3 * n_kv_heads * 20 * 4 * dtype.itemsize


@pytest.mark.parametrize("attention", names("attention"))
def test_every_attention_is_counted(attention):
    config = TransformerConfig(**SIZES, attention=attention)
    assert flops_per_token(config, 8) > 0
    assert activation_bytes(config, 2, 8) > 0
    assert state_bytes(config, 3, 20) == Transformer(config).init_state(3, 20).nbytes


def test_an_encoder_has_no_state():
    with pytest.raises(StateError, match="causal"):
        state_bytes(TransformerConfig(**{**SIZES, "causal": False}), 1, 8)


def test_recomputing_blocks_keeps_less():
    config = TransformerConfig(**SIZES)
    assert activation_bytes(config.with_fields(activation_checkpointing=True), 4, 32) < activation_bytes(config, 4, 32) / 2


def test_activations_are_those_that_a_real_forward_keeps():
    config = TransformerConfig(**{**SIZES, "causal": False}, ffn="relu", position="none")
    model, kept = Transformer(config), {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), \
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = model(torch.zeros(4, 32, dtype=torch.long))
    real = sum(x.untyped_storage().nbytes() for p, x in kept.items() if p not in own)
    assert out.shape == (4, 32, 50)
    assert activation_bytes(config, 4, 32) == pytest.approx(real, rel=0.1)


def test_inputs_of_features_are_counted():
    config = TransformerConfig(**SIZES, input_dim=7, output_dim=3)
    assert parameter_count(config) == sum(p.numel() for p in Transformer(config).parameters())
    assert flops_per_token(config, 8) > 0


class Choosing(FeedForward):
    """Looks at values to decide what it computes."""

    def forward(self, x, context):
        return x if x.sum().item() > 0 else -x


def test_what_hangs_on_values_is_told_apart():
    registry = Registry([*discover(), Entry("ffn", "choosing", f"{__name__}:Choosing", "acme", "1")])
    registry._classes["ffn", "acme:choosing"] = Choosing
    with use_registry(registry), pytest.raises(SpecError, match="decides from values what it computes"):
        flops_per_token(TransformerConfig(**SIZES, ffn="choosing"), 8)


def test_parts_say_what_each_layer_is_made_of():
    layers = [{"attention": {"name": "mha", "window": 8}}, {"position": "none"}]
    rows = parts(TransformerConfig(**{**SIZES, "layers": layers}))
    assert [row.name for row in rows] == ["embedding", "layer 0", "layer 1", "norm", "head"]
    assert rows[1].made_of == "mha(window=8), rope, swiglu, rmsnorm"
    assert rows[2].made_of == "mha, none, swiglu, rmsnorm"
    assert rows[4].parameters == 0  # tied: counted with the embedding
