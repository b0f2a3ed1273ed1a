"""What cannot be represented is refused with the field, what it says and what would do; nothing is passed over in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MAKERS, llama, saved, t5
from miniformer_hf import export_folder, export_model, import_folder, import_model
from safetensors.torch import load_file, save_file

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import UserError
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

ROPE = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}


def changed(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize(("maker", "fields", "message"), [
    ("gpt2", {"add_cross_attention": True}, "config.json: add_cross_attention is True; supported: False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; supported: False"),
    ("gpt2", {"activation_function": "xielu"}, "activation_function is 'xielu'; supported: 'gelu', 'relu', .*'gelu_new'"),
    ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures says GPT2DoubleHeadsModel.*supported"),
    ("gpt2", {"architectures": None}, r"architectures says nothing \(model_type 'gpt2'\); supported: GPT2LMHeadModel"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", **ROPE}},
     "rope_parameters.rope_type is 'dynamic'; supported: 'default', 'linear', 'yarn', 'llama3'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "beta_fast": 16, **ROPE}}, "beta_fast is 16; supported: 32"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "new": 1, **ROPE}}, "rope_parameters.new is 1; supported"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "factor is 'two'; supported: 'a number'"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ("llama", {"rope_parameters": [2]}, r"rope_parameters is \[2\]; supported: 'an object', None"),
    ("llama", {"num_key_value_heads": 3}, "miniformer cannot build this model: .*n_heads 4 must be a multiple of n_kv_heads 3"),
    ("llama", {"hidden_size": "16"}, "hidden_size is '16'; supported: 'a whole number'"),
    ("llama", {"mlp_bias": None}, "mlp_bias is None; supported: 'true or false'"),
    ("masked", {"is_decoder": True}, "is_decoder is True; supported: False"),
    ("masked", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; supported: 'absolute'"),
    ("sequence", {"problem_type": "regression"}, "problem_type is 'regression'; supported: None, 'single_label"),
    ("t5", {"num_decoder_layers": 1}, "num_decoder_layers is 1; supported: 2"),
    ("t5", {"architectures": ["T5EncoderModel"]}, "architectures says T5EncoderModel; supported"),
    ("t5", {"feed_forward_proj": "gated-xielu"}, "feed_forward_proj is 'gated-xielu'; supported: 'relu'"),
    ("t5", {"relative_attention_num_buckets": 7}, "n_buckets 7 must be even"),
])
def test_a_config_that_says_what_miniformer_cannot_is_refused(tmp_path: Path, maker: str, fields: dict[str, Any],
                                                              message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_model(changed(saved(MAKERS[maker](), tmp_path), **fields))


def rewritten(folder: Path, change: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("model.norm.weight"), "missing in the file: model.norm.weight"),
    (lambda w: w.update(extra=torch.zeros(3)), r"unknown to the architecture: extra \[3\]"),
    (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight: \[3\] in the file, \[16\] by config.json"),
    (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}), "unknown to .*q_proj.bias"),
])
def test_weights_are_those_of_the_config_and_no_others(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_model(rewritten(saved(llama(), tmp_path), change))


def test_a_copy_of_a_tied_matrix_must_be_one(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=True), tmp_path)
    import_model(rewritten(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()})))
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        import_model(rewritten(folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1})))


def test_the_encoder_of_t5_has_no_table_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight differs from shared.weight"):
        import_model(rewritten(saved(t5(), tmp_path),
                               lambda w: w.update({"encoder.embed_tokens.weight": w["shared.weight"] + 1})))


@pytest.mark.parametrize(("files", "message"), [
    ({}, "config.json: no such file; a folder that save_pretrained"),
    ({"config.json": "{"}, "config.json:1: not JSON"),
    ({"config.json": "[]"}, "expected an object; found list"),
    ({"config.json": "\ufeff{}"}, "model.safetensors: no such file; only safetensors are read"),
    ({"config.json": "{}"}, "model.safetensors: no such file; only safetensors are read"),
    ({"config.json": "{}", "model.safetensors": "x"}, "cannot be read as safetensors"),
    ({"config.json": "{}", "model.safetensors.index.json": "{}"}, "expected a 'weight_map'"),
])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        import_model(tmp_path)


def test_what_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="miniformer_hf"):
        import_model(changed(saved(llama(), tmp_path / "llama"), eos_token_id=[2, 3], sliding_window=4))
        import_model(changed(saved(MAKERS["gpt2"](), tmp_path / "gpt2"), embd_pdrop=0.3))
        folder = saved(MAKERS["masked"](), tmp_path / "masked")
        import_model(rewritten(folder, lambda w: w.update({"bert.pooler.dense.weight": torch.zeros(12, 12)})))
    for part in ("fields that Llama does not read: sliding_window", "eos_token_id [2, 3]: ", "embd_pdrop 0.3: ",
                 "left out, the pooler, which this head does not read: bert.pooler.dense.weight"):
        assert part in caplog.text
    caplog.clear()
    for maker in MAKERS:
        import_model(saved(MAKERS[maker](), tmp_path / f"all-{maker}"))
    assert caplog.text == "", "an ordinary checkpoint is read whole"


SIZES: dict[str, Any] = {"vocab_size": 20, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 18}


@pytest.mark.parametrize(("fields", "message"), [
    ({"attention": {"name": "mha", "window": 4}}, r"\n  Llama: attention.window is 4 instead of None\n"),
    ({"attention": {"name": "mha", "qk_norm": "rmsnorm"}}, "Llama: attention.qk_norm is .'name': 'rmsnorm'.* instead of None"),
    ({"attention": "linear", "position": "none"},
     "Llama: attention is 'linear' instead of 'mha'; position is 'none' instead of 'rope'"),
    ({"ffn": "relu2"}, "Llama: ffn is 'relu2' instead of 'swiglu' or 'geglu' or 'glu'"),
    ({"position": {"name": "rope", "scaling": "ntk", "factor": 2}}, "position.scaling is 'ntk' instead of 'linear' or 'yarn'"),
    ({"position": {"name": "rope", "pct": 0.5}}, "Llama: position.pct is 0.5 instead of 1.0"),
    ({"position": {"name": "rope", "scaling": "yarn", "factor": 4}}, "position.original_length is 4.5 instead of 'a whole"),
    ({"parallel": True}, "Llama: parallel is True instead of False"),
    ({"causal": False}, "Llama: causal is False instead of True"),
    ({"layers": [{"attention": "mha"}, {"attention": "mqa"}]}, "Llama: layers is 'of several kinds' instead of 'all alike'"),
    ({"position": "learned", "norm": "layernorm", "ffn": {"name": "gelu", "bias": True},
      "attention": {"name": "mha", "bias": True, "n_kv_heads": 2}}, "GPT-2: n_head by attention is 2 instead of 4"),
])
def test_a_model_that_fits_nothing_is_refused_part_by_part(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    model = Transformer(TransformerConfig(**{**SIZES, "causal": True, **fields}))
    with pytest.raises(UserError, match=message):
        export_model(model, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_an_encoder_decoder_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    model = Seq2SeqTransformer(TransformerConfig(**SIZES, position="t5-bias", head={"name": "lm", "scale": 0.5}, ffn="relu",
                                                 attention={"name": "mha", "scale": 1.0}))
    with pytest.raises(UserError, match=r"\n  T5: cross_attention.scale is None instead of 1.0"):
        export_model(model, tmp_path / "there")


def test_parameters_that_an_architecture_has_not_are_refused(tmp_path: Path) -> None:
    model = Transformer(TransformerConfig(**SIZES, causal=True))
    model.more = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=r"parameters that Llama has not: more"):
        export_model(model, tmp_path / "there")


def test_a_place_that_cannot_be_written_is_told_before_a_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda: import_folder(tmp_path / "nowhere", tmp_path / "file" / "out"),
                  lambda: export_folder(tmp_path / "nowhere", tmp_path / "file" / "out")):
        with pytest.raises(UserError, match="file is a file; expected a folder"):
            write()


def test_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    for write in (lambda: import_folder(saved(llama(), tmp_path / "x"), tmp_path), lambda: export_folder(tmp_path, tmp_path),
                  lambda: export_model(Transformer(TransformerConfig(**SIZES, causal=True)), tmp_path)):
        with pytest.raises(UserError, match=r"exists already|a folder of runs"):
            write()
    assert (tmp_path / "kept").is_file()
