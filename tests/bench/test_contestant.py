"""Runs are completed without data, and batches have the shapes of the comparison, whatever the task."""

import pytest

from miniformer.bench.contestant import MadeUp, Setting, account, batches, completed, new_model, tokens_of
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import UserError, current_registry
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.train_config import TrainConfig

MODEL = {"vocab_size": 300, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
SETTING = Setting(batch_size=3, length=20, precision=32, decode_precision=32)
TASKS = sorted(entry.qualified for entry in current_registry().entries("task") if entry.distribution == "miniformer")


def run(**fields):
    return TrainConfig(**{"model_config": {**MODEL, **fields.pop("model_config", {})}, **fields})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_on_rows_of_the_length_that_was_asked_for(task):
    config = completed(run(task=task), SETTING)
    module = MiniFormerLitModule(config)
    for batch in batches(config, SETTING):
        assert batch.layout.shape[0] % SETTING.batch_size == 0
        columns = batch.layout.shape[1] + (0 if batch.source is None else batch.source.layout.shape[1])
        assert columns in (SETTING.length, 2 * SETTING.length)  # a source and a target may be of that length each
        assert tokens_of(batch) == batch.layout.shape[0] * columns
        assert int(batch.inputs.max()) < MODEL["vocab_size"]
    loss = module._loss(batch).sum
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in module.model.parameters())


def test_labels_that_a_run_learnt_from_its_own_data_are_replaced():
    config = completed(run(task={"name": "classification", "labels": ["few", "many"]}, model_config={"output_dim": 2}), SETTING)
    assert "few" not in config.task.options["labels"]
    assert new_model(config).config.n_outputs == len(config.task.options["labels"])


def test_what_a_run_says_of_its_model_and_its_training_stays():
    config = completed(run(model_config={"ffn": "gelu"}, optimizer={"name": "adamw", "beta1": 0.8}), SETTING)
    assert config.optimizer.options["beta1"] == 0.8
    assert new_model(config).config.ffn.name == "gelu"
    assert (config.batch_size, config.precision) == (3, 32)


def test_an_account_is_that_of_the_spec():
    found = account(completed(run(), SETTING), SETTING)
    spec = TransformerConfig(**MODEL, causal=True)
    assert (found.parameters, found.flops_per_token) == (spec.parameter_count(), spec.flops_per_token(SETTING.length))
    assert found.writes


def test_an_encoder_does_not_write():
    assert not account(completed(run(task="masked-lm"), SETTING), SETTING).writes


def test_rows_longer_than_positions_are_refused_and_without_an_end_of_positions_they_are_not():
    learned = completed(run(model_config={"position": "learned", "max_seq_len": 8}), SETTING)
    with pytest.raises(UserError, match="rows of 20 tokens, and it reads at most max_seq_len = 8"):
        account(learned, SETTING)
    account(completed(run(model_config={"position": "rope", "max_seq_len": 8}), SETTING), SETTING)


def test_series_are_refused():
    with pytest.raises(UserError, match="reads series of numbers"):
        completed(run(task="classification", model_config={"input_dim": 3, "output_dim": 2}), SETTING)


def test_every_text_has_the_wanted_length_unless_it_is_empty():
    tokenizer = MadeUp(50, 7)
    texts = [tokenizer.encode(text) for text in ("a", "b", "a" * 100)]
    assert tokenizer.encode("") == []
    assert {len(ids) for ids in texts} == {7} and texts[0] != texts[1]
    assert all(0 <= token < 50 for ids in texts for token in ids)
