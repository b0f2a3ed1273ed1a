"""What training needs of memory: a run that cannot fit is refused before its data is read, and no other."""

import logging

import pytest
import torch

from miniformer.config.memory import Room
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import DataError, SpecError
from miniformer.model.transformer import Transformer
from miniformer.train import cost
from miniformer.train.cost import SURE, activations_per_token, check_room
from miniformer.train.run import Run
from miniformer.train.train_config import TrainConfig

GIB = 2**30
TINY = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
MODEL = TransformerConfig(d_model=1024, n_heads=4, n_layers=12, vocab_size=32_000)


@pytest.fixture
def room(monkeypatch):
    """Sets what the machine has, in GiB: in all, and free."""
    def have(total, free=None):
        found = Room(int(total * GIB), int((total if free is None else free) * GIB), "this machine has")
        monkeypatch.setattr(cost, "machine_room", lambda: found)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    return have


def refused(tokens=0, **fields):
    with pytest.raises(SpecError, match="training needs at least") as error:
        check_room(TrainConfig(**fields), Transformer, MODEL, tokens)
    return str(error.value)


def test_weights_gradients_and_the_optimizers_state_are_counted(room):
    room(2)
    assert refused() == (
        "training needs at least 3.49 GiB (0.87 GiB for weights, 0.87 GiB for gradients, 1.74 GiB for the optimizer's state), "
        "and this machine has 2.00 GiB; a smaller d_model, d_ff, n_layers, vocab_size, max_seq_len or batch_size needs less")
    assert "6.98 GiB (1.74 GiB for weights" in refused(precision=64)


def test_what_fits_in_principle_is_not_refused(room):
    room(3.5)
    assert check_room(TrainConfig(), Transformer, MODEL, 0) == []


def test_activations_of_a_batch_are_counted_and_half_of_them_in_16_bits(room):
    room(12)
    assert check_room(TrainConfig(precision="bf16"), Transformer, MODEL, 16 * 512) == []
    room(8)
    whole, half = refused(32 * 512, precision=32), refused(64 * 512, precision="bf16")
    assert "activations of the 16,384 tokens of a batch" in whole
    assert whole.partition(" (")[0] == half.partition(" (")[0]


def test_extensions_may_freeze_weights_so_only_they_are_counted(room, monkeypatch):
    room(2)
    config = TrainConfig().model_copy(update={"extensions": {"lora": {}}})
    assert check_room(config, Transformer, MODEL, 0) == []


def test_processes_of_a_machine_share_its_memory(room, monkeypatch):
    room(6)
    monkeypatch.setattr(cost, "launched", lambda: (2, 1))
    assert "this machine has 3.00 GiB for each of 2 processes" in refused()


def test_on_gpus_it_is_their_memory_that_counts(room, monkeypatch):
    room(100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cost, "gpu_room", lambda: Room(2 * GIB, 2 * GIB, "the GPU has"))
    assert "and the GPU has 2.00 GiB" in refused()
    assert check_room(TrainConfig(gpus=0), Transformer, MODEL, 0) == []


def test_memory_that_others_use_now_is_told_and_nothing_is_refused(room):
    room(16, free=2)
    (note,) = check_room(TrainConfig(), Transformer, MODEL, 0)
    assert note.startswith("training needs about 3.49 GiB of memory, and 2.00 GiB is free now; a smaller batch_size")


@pytest.mark.parametrize("fields", [{}, {"attention": "mqa", "ffn": "relu"}, {"activation_checkpointing": True},
                                    {"layers": [{"repeat": 2, "ffn": "gelu"}, {"norm": "layernorm"}]}], ids=str)
def test_what_is_surely_kept_is_less_than_what_a_real_step_keeps(monkeypatch, fields):
    monkeypatch.setattr(cost, "WORTH", 0)
    spec = TransformerConfig(d_model=32, n_heads=4, vocab_size=11, max_seq_len=64, causal=True, **fields)
    model, kept = Transformer(spec), {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model(torch.zeros(4, 64, dtype=torch.long))
    real = sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in own)
    counted = SURE * 4 * 64 * activations_per_token(TrainConfig(precision=32), Transformer, spec, 4 * 64)
    assert out is not None and 0 < counted < real


@pytest.mark.parametrize("sizes", [
    {"d_model": 2**20}, {"d_ff": 2**22, "n_layers": 100}, {"vocab_size": 2**31 - 1}, {"max_seq_len": 2**31 - 1},
    {"max_seq_len": 2**31 - 1, "position": "learned"}, {"n_layers": 10_000, "d_model": 1024},
    {"layers": [{"repeat": 9_000, "ffn": "gelu"}, {"repeat": 1_000}], "d_model": 1024}], ids=str)
def test_sizes_that_no_machine_has_are_refused_before_the_data_is_read(tmp_path, sizes):
    config = TrainConfig(train_path="nowhere.jsonl", work_dir=str(tmp_path), model_config={"n_heads": 1, **sizes})
    with pytest.raises(SpecError, match=r"training needs at least .* GiB .*; a smaller"):
        Run(config).prepare()


def test_an_unknown_vocabulary_refuses_nothing_before_the_data_is_read(tmp_path, room):
    room(0.25)
    config = TrainConfig(train_path="nowhere.jsonl", work_dir=str(tmp_path), tokenizer_vocab_size=10**6,
                         model_config={**TINY, "d_model": 128})
    with pytest.raises(DataError, match="no such file"):
        Run(config).prepare()


def test_a_batch_beyond_memory_is_refused_once_the_rows_are_known(tmp_path, texts, room, monkeypatch):
    monkeypatch.setattr(cost, "WORTH", 0)
    room(0.0003)
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"), tokenizer_vocab_size=300, model_config=TINY)
    with pytest.raises(SpecError, match=r"activations of the 640 tokens of a batch"):
        Run(config.with_fields(batch_size=10**9)).prepare()
    assert not (tmp_path / "runs").exists()


def test_the_command_line_tells_it_in_one_line(cli):
    done = cli("train", "--d-model", "1048576", code=2)
    assert done.stderr.startswith("error: training needs at least ") and done.stderr.count("\n") == 1


def test_python_users_are_told_by_the_log(tmp_path, texts, room, caplog):
    room(16, free=0)
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"), tokenizer_vocab_size=300,
                         model_config={**TINY, "d_model": 1024})
    with caplog.at_level(logging.WARNING):
        Run(config).prepare()
    assert "is free now" in caplog.text
