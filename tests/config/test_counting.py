"""Counts are those of the model that is built, for any components, in every assembly."""

import re

import pytest
import torch
from covering_array import covering

from miniformer.config.matrix import names
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Assembly, Entry, FeedForward, Registry, SpecError, StateError, discover, use_registry
from miniformer.model.assemblies import assembly_of
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

SIZES = {"vocab_size": 50, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 40, "max_seq_len": 32}
DECODER = {**SIZES, "causal": True}
ASSEMBLIES = names("assembly")


def size_of(model):
    return sum(p.numel() for p in model.parameters())


def built(config, assembly="transformer"):
    return assembly_of(assembly)(config)


CHOICES = {
    "attention": [*names("attention"), {"name": "mha", "n_kv_heads": 2, "qk_norm": "rmsnorm", "sinks": True}],
    "position": names("position"),
    "ffn": names("ffn"),
    "norm": names("norm"),
    "head": [*({"name": "lm", "tied": tied} for tied in (True, False)), *(name for name in names("head") if name != "lm")],
    "form": [("transformer", False), ("transformer", True), ("seq2seq", False)],
    "norm_placement": ["pre", "post", "sandwich"],
    "parallel": [False, True],
    "share_embeddings": [True, False],
    "input_dim": [None, 7],
    "layers": [(), ({"attention": "mqa", "ffn": "gelu"}, {"norm": "layernorm"})],
}


def config_of(fields):
    _, causal = fields.get("form", (None, False))
    fields = {name: value for name, value in fields.items() if name != "form"}
    return TransformerConfig(**SIZES, causal=causal, **fields, **({"output_dim": 5} if fields.get("input_dim") else {}))


def possible(fields):
    """Whether choices go together; tests/test_matrix.py has it told where not."""
    try:
        config_of(fields)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize("row", covering(CHOICES, possible), ids=str)
def test_parameters_are_those_of_the_built_model(row):
    fields = dict(zip(CHOICES, row, strict=True))
    config, (assembly, _) = config_of(fields), fields["form"]
    expected = size_of(built(config, assembly))
    assert config.parameter_count(assembly) == expected
    assert sum(one.parameters for one in config.skeleton(assembly).rows()) == expected
    # what is known without building it is never more, and short of no more than norms, biases and looking across
    assert 0.6 * expected < assembly_of(assembly).least_numbers(config) <= expected


def test_arithmetic_is_two_for_each_weight_and_four_for_each_score_and_width():
    config = TransformerConfig(**DECODER, ffn="gelu")
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 40) + 16 * 50  # two layers and the tied head
    scores = 2 * 32 * 16  # for each layer: q k^T and the weighted sum, over 32 keys
    assert config.flops_per_token(32) == 2 * weights + 2 * scores * 2


@pytest.mark.parametrize(("target", "source"), [(8, 8), (4, 20), (20, 4)])
def test_arithmetic_of_an_encoder_decoder_is_that_of_both_and_of_looking_across(target, source):
    config = TransformerConfig(**SIZES, ffn="gelu")
    block = 4 * 16 * 16 + 2 * 16 * 40
    encoder = 2 * (source * 2 * block + 4 * source * source * 16)
    crossing = target * 2 * 2 * 16 * 16 + source * 2 * 2 * 16 * 16 + 4 * target * source * 16  # q and out, k and v, scores
    decoder = 2 * (target * 2 * block + 4 * target * target * 16 + crossing)
    head = target * 2 * 16 * 50
    assert config.flops_per_token(target, source, "seq2seq") == (encoder + decoder + head) // (source + target)
    assert config.flops_per_token(target, assembly="seq2seq") == config.flops_per_token(target, target, "seq2seq")


@pytest.mark.parametrize("n_kv_heads", [4, 1])
def test_state_is_what_a_built_model_keeps(n_kv_heads):
    config = TransformerConfig(**DECODER, attention={"name": "mha", "n_kv_heads": n_kv_heads})
    assert config.state_bytes(3, 20) == built(config).init_state(3, 20).nbytes == 2 * 2 * 3 * n_kv_heads * 20 * 4 * 4


def test_state_of_windows_is_counted_as_it_is_bounded():
    """Beside full attention, whose state grows with the text, and with a window that is longer than the text."""
    config = TransformerConfig(**{**DECODER, "n_layers": 3, "max_seq_len": 5000}, layers=[
        {"attention": {"name": "mha", "window": 32}}, {"attention": "mha"}, {"attention": {"name": "mha", "window": 4000}}])
    column, number, narrow = 3 * 2 * 16 * 4, 3 * 8, 31 + 2 * 32  # its keys and values, and which one it is; slots of 32
    assert config.state_bytes(3, 3000) == built(config).init_state(3, 3000).nbytes == (
        (narrow + 3000 + 3000) * column + (narrow + 3000) * number)
    assert config.state_bytes(3, 3100) - config.state_bytes(3, 3000) == 100 * (2 * column + number)
    assert config.state_bytes(3, 50) == 3 * 50 * column + 2 * 50 * number


@pytest.mark.parametrize("cross", [{"name": "mha"}, {"name": "mha", "n_kv_heads": 2}])
def test_state_of_an_encoder_decoder_is_the_decoders_with_what_it_looks_at(cross):
    config = TransformerConfig(**SIZES, cross_attention=cross)
    model = Seq2SeqTransformer(config)
    state = model.init_state(model.encode(torch.zeros(3, 11, dtype=torch.long)), 20)
    assert config.state_bytes(3, 20, 11, "seq2seq") == state.nbytes
    assert state.nbytes == 4 * 3 * 16 * (2 * 2 * 20 + 11 + 2 * 2 * 11 * cross.get("n_kv_heads", 4) // 4)


@pytest.mark.parametrize("attention", names("attention"))
def test_every_attention_is_counted(attention):
    config = TransformerConfig(**DECODER, attention=attention)
    assert config.flops_per_token(8) > 0
    assert config.skeleton().activation_bytes(2, 8) > 0
    assert config.state_bytes(3, 20) == Transformer(config).init_state(3, 20).nbytes


def test_an_encoder_has_no_state():
    with pytest.raises(StateError, match="causal"):
        TransformerConfig(**SIZES).state_bytes(1, 8)


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_recomputing_blocks_keeps_less(assembly):
    config = TransformerConfig(**SIZES)
    recomputed = config.with_fields(activation_checkpointing=True)
    kept = [one.skeleton(assembly).activation_bytes(4, 32) for one in (recomputed, config)]
    assert kept[0] < kept[1] / 2


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_activations_are_those_that_a_real_forward_keeps(assembly):
    config = TransformerConfig(**SIZES, ffn="relu", position="none")
    model, kept = built(config, assembly), {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    inputs = [torch.zeros(4, length, dtype=torch.long) for length in ((20, 32) if model.has_source else (32,))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), \
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = model(*inputs)
    real = sum(x.untyped_storage().nbytes() for p, x in kept.items() if p not in own)
    assert out is not None
    assert config.skeleton(assembly).activation_bytes(4, 32, 20) == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_each_token_keeps_about_as_much_in_a_long_row_without_the_scores(assembly):
    config = TransformerConfig(**{**SIZES, "max_seq_len": 512})
    scores = 2 * 4 * 4 * 64 * 64 * (3 if assembly == "seq2seq" else 1)  # layers x heads x bytes x T x S
    tokens = 128 if assembly == "seq2seq" else 64
    skeleton = config.skeleton(assembly)
    assert skeleton.activation_bytes_per_token() < 1.1 * skeleton.activation_bytes(1, 64) / tokens
    assert skeleton.activation_bytes_per_token() > 0.8 * (skeleton.activation_bytes(1, 64) - 4 * scores) / tokens


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_activations_are_of_the_rows_alone_so_twice_the_rows_keep_twice_as_much(assembly):
    skeleton = TransformerConfig(**SIZES).skeleton(assembly)
    assert skeleton.activation_bytes(4, 8) == 2 * skeleton.activation_bytes(2, 8)


class Choosing(FeedForward):
    """Looks at values to decide what it computes."""

    def forward(self, x, context):
        return x if x.sum().item() > 0 else -x


class Recurrent(Assembly):
    """A model of another make: it says nothing of its parts, and keeps no state."""

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.cells = torch.nn.GRU(config.d_model, config.d_model, config.n_layers, batch_first=True)

    def read(self, batch, context=None, readout=None):
        return self.cells(self.table(batch.inputs))[0]


@pytest.fixture
def third_party():
    ours = [("ffn", Choosing), ("assembly", Recurrent)]
    registry = Registry([*discover(), *(Entry(kind, c.__name__.lower(), f"{__name__}:x", "acme", "1") for kind, c in ours)])
    registry._classes |= {(kind, f"acme:{c.__name__.lower()}"): c for kind, c in ours}
    with use_registry(registry):
        yield


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_what_hangs_on_values_is_told_apart(third_party, assembly):
    config = TransformerConfig(**SIZES, ffn="choosing")
    assert config.parameter_count(assembly) == size_of(built(config, assembly))
    with pytest.raises(SpecError, match="decides from values what it computes"):
        config.flops_per_token(8, assembly=assembly)


def test_an_assembly_of_a_third_party_is_counted(third_party):
    config = TransformerConfig(**SIZES)
    table, cells = list(config.skeleton("recurrent").rows())
    assert (table.name, table.parameters, cells.name) == ("table", 50 * 16, "cells")
    assert config.parameter_count("recurrent") == size_of(Recurrent(config))
    assert config.skeleton("recurrent").activation_bytes(2, 8) > 0
    with pytest.raises(StateError, match="Recurrent defines no empty_state"):
        config.state_bytes(1, 8, assembly="recurrent")


def test_rows_say_what_each_layer_is_made_of():
    layers = [{"attention": {"name": "mha", "window": 8}}, {"position": "none"}]
    rows = list(TransformerConfig(**{**DECODER, "layers": layers}).skeleton().rows())
    assert [row.name for row in rows] == ["embedding", "layer 0", "layer 1", "norm", "head"]
    assert rows[1].made_of == "mha(window=8), rope, swiglu, rmsnorm"
    assert rows[2].made_of == "mha, none, swiglu, rmsnorm"
    assert rows[4].parameters == 0  # tied: counted with the embedding


@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_an_encoder_decoder_are_those_of_both(shared):
    config = TransformerConfig(**{**SIZES, "n_layers": 1}, position="learned", share_embeddings=shared, norm_placement="post",
                               cross_attention={"name": "mha", "n_kv_heads": 1})
    source, encoder, target, decoder, head = config.skeleton("seq2seq").rows()
    assert (source.name, encoder.name, target.name, decoder.name, head.name) == (
        "source embedding", "encoder layer 0", "target embedding", "decoder layer 0", "head")
    assert encoder.made_of == "mha, learned, swiglu, rmsnorm"
    assert decoder.made_of == "mha, learned, swiglu, rmsnorm, cross_attention mha(n_kv_heads=1)"
    assert source.parameters == 50 * 16 + 32 * 16
    assert target.parameters == (0 if shared else 50 * 16) + 32 * 16  # the table once; positions of the decoder are its own


@pytest.mark.parametrize(("forward", "said"), [
    (lambda self, x, context: x if x.max() > 0 else -x, "decides from values what it computes"),
    (lambda self, x, context: x.view(7), "cannot be run, so it cannot be counted: ffn 'acme:odd' (layer 0, slot ffn): "
                                         "RuntimeError: shape '[7]' is invalid"),
])
def test_what_cannot_be_counted_is_told_for_what_it_is(forward, said):
    cls = type("Odd", (FeedForward,), {"forward": forward, "__module__": __name__})
    registry = Registry([*discover(), Entry("ffn", "odd", f"{__name__}:Odd", "acme", "1")])
    registry._classes["ffn", "acme:odd"] = cls
    with use_registry(registry), pytest.raises(SpecError, match=re.escape(said)):
        TransformerConfig(**SIZES, ffn="odd").flops_per_token(4)
