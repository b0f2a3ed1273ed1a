"""An imported model says what transformers says, with every parameter random: logits, and greedy texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import MAKERS, exact, ids_of, ours, outputs, saved
from hypothesis import given
from hypothesis import strategies as st
from miniformer_hf import import_model

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
LLAMA_3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 8, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "rope_theta": 500.0}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}), ("gpt2", {"n_inner": 7, "activation_function": "relu", "layer_norm_epsilon": 0.1}),
    ("gpt2", {"tie_word_embeddings": False}), ("gpt2", {"scale_attn_weights": False, "activation_function": "gelu"}),
    ("llama", {}), ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    ("llama", {"hidden_act": "gelu"}), ("llama", {"hidden_act": "gelu_new"}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}),
    ("llama", {"rope_parameters": LLAMA_3}),
    ("masked", {}), ("masked", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1, "type_vocab_size": 3}), ("sequence", {}),
    ("tokens", {"hidden_act": "relu"}),
    ("t5", {}), ("t5", {"d_kv": 4, "layer_norm_epsilon": 0.1}), ("t5_11", {}), ("t5", {"feed_forward_proj": "gated-silu"}),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("maker", "fields"), VARIANTS, ids=[f"{m}-{'-'.join(f) or 'plain'}" for m, f in VARIANTS])
def test_it_says_what_transformers_says(tmp_path: Path, maker: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    theirs = MAKERS[maker](**fields).to(dtype)
    model = import_model(saved(theirs, tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    ids, lengths = ids_of(3, 9), [9, 4, 7]
    with exact():
        expected, real = outputs(theirs, ids, lengths)
    actual = ours(model, ids, lengths, summary=maker == "sequence")
    if maker == "sequence":
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[dtype])
    else:
        torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=TOLERANCE[dtype])
    assert expected.std() > 0.05


def test_yarn_says_what_transformers_says(tmp_path: Path) -> None:
    """Their frequencies are of another order of operations, so float32 is all that can be equal."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}
    theirs = checkpoints.llama(rope_parameters=rope, max_position_embeddings=64)
    ids = ids_of(2, 40)
    torch.testing.assert_close(ours(import_model(saved(theirs, tmp_path)), ids), outputs(theirs, ids)[0], rtol=0, atol=1e-4)


multiples = st.integers(1, 3)


@given(heads=multiples, width=multiples, layers=multiples, d_ff=st.integers(1, 9), length=st.integers(1, 8),
       kv=st.booleans(), maker=st.sampled_from(["gpt2", "llama", "masked", "t5"]), seed=st.integers(0, 99))
def test_it_says_so_at_any_size(heads: int, width: int, layers: int, d_ff: int, length: int, kv: bool, maker: str,
                                seed: int) -> None:
    torch.manual_seed(seed)
    D = 2 * width * heads
    fields: dict[str, Any] = {
        "gpt2": {"n_embd": D, "n_head": heads, "n_layer": layers, "n_inner": d_ff},
        "llama": {"hidden_size": D, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": d_ff,
                  "num_key_value_heads": 1 if kv else heads},
        "masked": {"hidden_size": D, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": d_ff},
        "t5": {"d_model": D, "num_heads": heads, "d_kv": width + 1, "num_layers": layers, "d_ff": d_ff},
    }[maker]
    theirs, ids = MAKERS[maker](**fields).double(), ids_of(2, length)
    with tempfile.TemporaryDirectory() as folder, exact():
        actual = ours(import_model(saved(theirs, Path(folder))), ids)
        torch.testing.assert_close(actual, outputs(theirs, ids)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("maker", ["gpt2", "llama", "t5", "t5_11"])
@pytest.mark.parametrize("use_state", [True, False])
def test_it_writes_what_transformers_writes(tmp_path: Path, maker: str, use_state: bool) -> None:
    theirs = MAKERS[maker]()
    model, written = import_model(saved(theirs, tmp_path)), set()
    for row in ids_of(4, 6):
        expected = theirs.generate(row[None], do_sample=False, max_new_tokens=10)
        actual = model.generate(row[None], max_new_tokens=10, do_sample=False, use_state=use_state)
        assert actual.tolist() == (expected[:, 1:] if model.has_source else expected).tolist()
        written.add(tuple(actual[0].tolist()))
    assert len(written) > 1


@pytest.mark.parametrize("maker", ["gpt2", "t5"])
def test_shards_are_one_model(tmp_path: Path, maker: str) -> None:
    theirs = MAKERS[maker]()
    single = import_model(saved(theirs, tmp_path / "one"))
    many = import_model(saved(theirs, tmp_path / "many", max_shard_size="4KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert all(torch.equal(tensor, many.state_dict()[name]) for name, tensor in single.state_dict().items())


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    theirs = checkpoints.llama().to(torch.bfloat16)
    model, ids = import_model(saved(theirs, tmp_path)), ids_of(2, 5)
    torch.testing.assert_close(ours(model, ids), outputs(theirs.float(), ids)[0], rtol=0, atol=1e-4)
