"""Out and back again, in both directions, nothing is changed: fields, names of tensors, and every bit of them."""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from checkpoints import MAKERS, ids_of, ours, outputs, randomised, saved
from hypothesis import given
from hypothesis import strategies as st
from miniformer_hf import export_folder, export_model, import_folder, import_model
from safetensors.torch import load_file, save_file

from miniformer.checkpoint.store import write_model
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Entry, Registry, UserError, discover, hookimpl, use_registry
from miniformer.model.assembly import BlockAssembly
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

CLASSES = {"gpt2": transformers.AutoModelForCausalLM, "llama": transformers.AutoModelForCausalLM,
           "masked": transformers.AutoModelForMaskedLM, "sequence": transformers.AutoModelForSequenceClassification,
           "tokens": transformers.AutoModelForTokenClassification, "t5": transformers.AutoModelForSeq2SeqLM,
           "t5_11": transformers.AutoModelForSeq2SeqLM}
SIZES: dict[str, Any] = {"vocab_size": 41, "n_layers": 2, "n_heads": 2, "d_model": 8, "d_ff": 12, "max_seq_len": 16}
GPT2 = {"causal": True, "position": "learned", "norm": "layernorm", "ffn": {"name": "gelu", "bias": True},
        "attention": {"name": "mha", "bias": True}}
LLAMA = {"causal": True, "attention": "rope-mha", "ffn": "swiglu", "norm": "rmsnorm"}
BERT = {"position": "bert-embeddings", "norm": {"name": "layernorm", "eps": 1e-12}, "ffn": {"name": "gelu", "bias": True},
        "norm_placement": "post", "attention": {"name": "mha", "bias": True}}
UNSCALED = {"name": "mha", "scale": 1.0}
T5 = {"position": "t5-bias", "ffn": "relu", "attention": UNSCALED, "cross_attention": UNSCALED}


def assert_equal(actual: BlockAssembly, expected: BlockAssembly) -> None:
    assert actual.config == expected.config
    weights, expected_weights = actual.state_dict(), expected.state_dict()
    assert weights.keys() == expected_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected_weights[name])] == []


@pytest.mark.parametrize("maker", MAKERS)
def test_import_then_export_gives_the_weights_of_the_original(tmp_path: Path, maker: str) -> None:
    theirs, ids = MAKERS[maker](), ids_of(2, 7)
    import_folder(saved(theirs, tmp_path / "there"), tmp_path / "here")
    export_folder(tmp_path / "here", tmp_path / "back")
    expected, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "back"))
    assert expected.keys() == exported.keys()
    assert [name for name in expected if not torch.equal(expected[name], exported[name])] == []
    back, loading = CLASSES[maker].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(loading.values()), loading
    assert torch.equal(outputs(back.eval(), ids)[0], outputs(theirs, ids)[0])


EXPORTED: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {**GPT2, "dropout": 0.2, "attention": {"name": "mha", "bias": True, "dropout": 0.3}, "eos_id": 2},
    "GPT2LMHeadModel untied": {**GPT2, "head": {"name": "lm", "tied": False}, "ffn": {"name": "relu2", "bias": True}},
    "LlamaForCausalLM": LLAMA,
    "LlamaForCausalLM gqa": {**LLAMA, "attention": {"name": "gqa", "bias": True, "n_kv_heads": 1, "d_head": 6},
                             "ffn": {"name": "swiglu", "bias": True}, "head": {"name": "lm", "tied": False}},
    "LlamaForCausalLM geglu": {**LLAMA, "ffn": "geglu", "norm": {"name": "rmsnorm", "eps": 1e-3}, "bos_id": 7, "eos_id": 8},
    "LlamaForCausalLM glu": {**LLAMA, "ffn": {"name": "glu", "activation": "gelu-tanh"}},
    "LlamaForCausalLM linear": {**LLAMA, "position": {"name": "rope", "scaling": "linear", "factor": 2.0, "base": 50.0}},
    "LlamaForCausalLM yarn": {**LLAMA, "position": {"name": "rope", "scaling": "yarn", "factor": 2.0}},
    "LlamaForCausalLM llama3": {**LLAMA, "position": {"name": "rope", "scaling": "llama3", "factor": 2.0,
                                                      "original_length": 6}},
    "BertForMaskedLM": {**BERT, "head": "bert-mlm"},
    "BertForSequenceClassification": {**BERT, "head": "bert-pooled", "output_dim": 3},
    "BertForTokenClassification": {**BERT, "head": "token-classification", "output_dim": 3, "dropout": 0.2},
    "T5ForConditionalGeneration": {**T5, "head": {"name": "lm", "scale": 8 ** -0.5}, "bos_id": 0, "eos_id": 1},
    "T5ForConditionalGeneration plain head": T5,
    "T5ForConditionalGeneration wide": {**T5, "attention": {**UNSCALED, "d_head": 3}, "ffn": "swiglu",
                                        "cross_attention": {**UNSCALED, "d_head": 3}, "head": {"name": "lm", "tied": False}},
}


@pytest.mark.parametrize("case", EXPORTED)
def test_export_then_import_is_the_identity_and_transformers_agrees(tmp_path: Path, case: str) -> None:
    config = TransformerConfig(**{**SIZES, **EXPORTED[case]})
    model = randomised((Seq2SeqTransformer if case.startswith("T5") else Transformer)(config))
    export_model(model, tmp_path / "there")
    assert_equal(model, import_model(tmp_path / "there"))
    cls = getattr(transformers, case.split()[0])
    theirs, loading = cls.from_pretrained(tmp_path / "there", output_loading_info=True)
    assert not any(loading.values()), loading
    ids, summary = ids_of(2, 9), case == "BertForSequenceClassification"
    torch.testing.assert_close(ours(model, ids, summary=summary), outputs(theirs.eval(), ids)[0], rtol=0, atol=1e-4)


@given(heads=st.integers(1, 3), width=st.integers(1, 3), kv=st.none() | st.just(1), bias=st.booleans(), tied=st.booleans(),
       d_head=st.none() | st.integers(2, 5).map(lambda n: 2 * n), activation=st.sampled_from(["swiglu", "geglu"]),
       base=st.floats(10, 1e6), eps=st.floats(1e-8, 1e-2), dropout=st.floats(0, 0.9))
def test_of_any_options_of_a_llama(heads: int, width: int, kv: int | None, bias: bool, tied: bool, d_head: int | None,
                                   activation: str, base: float, eps: float, dropout: float) -> None:
    attention = {"name": "mha", "n_kv_heads": kv, "bias": bias, "d_head": d_head, "dropout": dropout}
    model = Transformer(TransformerConfig(
        vocab_size=11, n_layers=1, n_heads=heads, d_model=2 * width * heads, max_seq_len=8, causal=True, attention=attention,
        position={"name": "rope", "base": base}, ffn={"name": activation, "bias": not bias}, head={"name": "lm", "tied": tied},
        norm={"name": "rmsnorm", "eps": eps}))
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder) / "there")
        assert_equal(model, import_model(Path(folder) / "there"))


def test_two_ways_to_say_one_model_are_exported_alike(tmp_path: Path) -> None:
    fields = {**LLAMA, "ffn": {"name": "glu", "activation": "silu"}, "layers": [{"repeat": 2, "ffn": "swiglu"}]}
    export_model(Transformer(TransformerConfig(**SIZES, **fields)), tmp_path / "there")
    assert import_model(tmp_path / "there").config == TransformerConfig(**SIZES, **LLAMA)


def test_what_matters_in_training_alone_keeps_no_model_from_being_exported(tmp_path: Path) -> None:
    config = TransformerConfig(**SIZES, **T5, dropout=0.1)  # and none on the attention weights, which T5 cannot say
    export_model(Seq2SeqTransformer(config), tmp_path / "t5")
    assert import_model(tmp_path / "t5").config.attention.options["dropout"] == 0.1
    fields = {**LLAMA, "dropout": 0.1, "activation_checkpointing": True, "attention": {"name": "mha", "kernel": "eager"}}
    export_model(Transformer(TransformerConfig(**SIZES, **fields)), tmp_path / "llama")
    assert import_model(tmp_path / "llama").config == TransformerConfig(**SIZES, **LLAMA)


def test_an_extension_that_changed_the_model_keeps_it_from_being_exported(tmp_path: Path) -> None:
    class Wider:
        """Adds to the model."""

        @hookimpl
        def model_assembled(self, model: Any) -> None:
            """Changes nothing, for all that anybody knows."""

    acme = types.ModuleType("acme_wider")
    acme.Wider = Wider  # type: ignore[attr-defined]
    model = Transformer(TransformerConfig(**SIZES, **LLAMA))
    config = {"assembly": "transformer", "model": model.config.model_dump(mode="json"), "extensions": {"acme:wider": {}}}
    with patch.dict(sys.modules, acme_wider=acme), use_registry(
            Registry([*discover(), Entry("extension", "wider", "acme_wider:Wider", "acme", "1")])):
        write_model(tmp_path / "here", model.state_dict(), config)
        with pytest.raises(UserError, match="extension 'acme:wider' changed this model"):
            export_folder(tmp_path / "here", tmp_path / "there")


def test_older_names_of_tensors_are_read(tmp_path: Path) -> None:
    """Checkpoints of the first years: no base in the names of GPT-2, its masks in the file; gamma and beta in BERT."""
    for maker in ("gpt2", "masked"):
        folder = saved(MAKERS[maker](), tmp_path / maker)
        expected, weights = import_model(folder), load_file(folder / "model.safetensors")
        if maker == "gpt2":
            weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
            weights["h.0.attn.bias"] = torch.ones(1, 1, 20, 20)
            weights["lm_head.weight"] = weights["wte.weight"].clone()
        else:
            weights = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
                       for name, tensor in weights.items()}
            weights["bert.pooler.dense.weight"] = torch.ones(12, 12)
        save_file(weights, folder / "model.safetensors")
        assert_equal(expected, import_model(folder))
