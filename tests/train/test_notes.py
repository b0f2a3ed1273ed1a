"""Settings that have less effect than they say are told before training begins, and nobody else is told anything."""

import pytest
from rich.console import Console

from miniformer.train.notes import notes_on, say_notes
from miniformer.train.train_config import TrainConfig

FINE = {"train_path": "x.jsonl", "max_epochs": 2, "batch_size": 4}
"""With 40 rows: 10 batches an epoch, 20 steps."""


@pytest.mark.parametrize(("fields", "note"), [
    ({"warmup_steps": 20}, "warmup_steps is 20, and the run has 20 steps: the learning rate stays below lr"),
    ({"warmup_steps": 1, "max_steps": 1}, "warmup_steps is 1, and the run has 1 step: the learning rate stays below lr"),
    ({"warmup_steps": 5, "accumulate_grad_batches": 5}, "warmup_steps is 5, and the run has 4 steps"),
    ({"batch_size": 41}, "batch_size is 41, and there are 40 rows to train on: a batch has them all"),
    ({"accumulate_grad_batches": 11}, "accumulate_grad_batches is 11, and an epoch has 10 batches: a step ends with its epoch"),
    ({"val_every": 21}, "val_every is 21, and the run has 20 batches: the model is measured at the end only"),
    ({"val_every": 9, "max_steps": 2, "accumulate_grad_batches": 4}, "val_every is 9, and the run has 8 batches"),
    ({"early_stopping_patience": 2}, "early_stopping_patience is 2, and the run has 2 measurements: it cannot stop early"),
    ({"val_path": "x.jsonl"}, "val_path is the file that is trained on, so what is measured there says nothing"),
    ({"test_path": "x.jsonl"}, "test_path is the file that is trained on"),
])
def test_a_setting_with_less_effect_than_it_says_is_told(fields, note):
    config = TrainConfig(**{**FINE, **fields})
    (said,) = notes_on(config, 40, -(-40 // config.batch_size) if config.batch_size < 40 else 10)
    assert said.startswith(note)


@pytest.mark.parametrize("fields", [
    {}, {"warmup_steps": 19}, {"batch_size": 40}, {"accumulate_grad_batches": 10}, {"val_every": 20}, {"max_steps": 10**12},
    {"early_stopping_patience": 1}, {"val_path": "y.jsonl", "test_path": "z.jsonl"},
    {"early_stopping_patience": 9, "val_every": 2}, {"max_steps": 3}])
def test_settings_that_fit_are_not_told(fields):
    assert list(notes_on(TrainConfig(**{**FINE, **fields}), 40, 10)) == []


def test_a_file_is_the_same_however_its_path_is_written(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    config = TrainConfig(**{**FINE, "train_path": str(tmp_path / "x.jsonl"), "val_path": f"{tmp_path}/./x.jsonl"})
    assert len(list(notes_on(config, 40, 10))) == 1


def test_notes_go_to_the_console_and_where_it_is_quiet_to_the_log(capsys, caplog):
    say_notes(Console(), ["[one]"])
    assert capsys.readouterr().out == "note: [one]\n" and not caplog.messages
    say_notes(Console(quiet=True), ["[one]"])
    assert caplog.messages == ["[one]"]
