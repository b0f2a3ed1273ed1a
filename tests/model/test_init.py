import pytest
import torch
from torch import nn

from miniformer.config.model_config import TransformerConfig
from miniformer.model.transformer import Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=1, max_seq_len=16, causal=True, attention="mla")
    return Transformer(config).eval()


def by_columns(model):
    return {name for name, weight in model.named_parameters() if not weight.is_contiguous()}


def matrices(model):
    return {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def test_matrices_lie_by_columns_once_a_model_writes_and_by_rows_when_it_trains(model):
    ids = torch.randint(11, (1, 4))
    before, parameters = model(ids), list(model.parameters())
    assert not by_columns(model)
    written = model.generate(ids, 3, do_sample=False)
    assert by_columns(model) - {"embedding.weight"} == matrices(model) - {"head.out.weight"}  # which are one, tied
    torch.testing.assert_close(model(ids), before)
    assert torch.equal(model.generate(ids, 3, do_sample=False), written)
    model.train()
    assert not by_columns(model) and all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_a_layer_that_is_not_ours_and_a_model_in_training_stay_as_they_are(model):
    model.stack.blocks[0].ffn.down = nn.Linear(32, 8)
    model.generate(torch.randint(11, (1, 4)), 1, do_sample=False)
    assert "stack.blocks.0.ffn.down.weight" not in by_columns(model)
    model.train()
    model.generate(torch.randint(11, (1, 4)), 1, do_sample=False)
    assert not by_columns(model)


def test_what_is_saved_does_not_tell_how_it_lay(model, tmp_path):
    model.save_pretrained(tmp_path / "before")
    model.generate(torch.randint(11, (1, 4)), 1, do_sample=False)
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "before/model.safetensors").read_bytes() == (tmp_path / "after/model.safetensors").read_bytes()
