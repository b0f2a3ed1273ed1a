"""A run step by step: training in pieces is training at once, and weights can be taken out and put in."""

import json
import random

import numpy as np
import pytest
import torch

from miniformer.kernel import RunError, SpecError
from miniformer.train.run import Run
from miniformer.train.train_config import TrainConfig


@pytest.fixture
def new_run(tmp_path, texts):
    """A function that makes a small run with dropout, whose epochs have 5 batches."""
    def make(name, **fields):
        model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.2}
        return Run(TrainConfig(**{
            "train_path": str(texts), "work_dir": str(tmp_path / "runs"), "experiment_name": name, "batch_size": 4,
            "tokenizer_vocab_size": 300, "precision": 32, "lr": 1e-2, "cache": False, "model_config": model, **fields}))

    return make


def draw_numbers():
    """What a process may do between two pieces of training, or another run in it."""
    torch.rand(3), np.random.rand(3), random.random()


def equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def in_pieces(run, pieces):
    for steps in pieces:
        run.fit(steps)
        draw_numbers()
    return run


# An epoch has 5 batches: 5 steps; with 2 batches a step 3, the last of which has one batch; with 4 batches a step 2.
@pytest.mark.parametrize(("pieces", "fields"), [
    ((1, 1, 9, None), {"max_steps": 13, "val_every": 3}),
    ((3, 2, 5, None), {"max_epochs": 3, "val_every": 3}),
    ((4, 3, None), {"max_epochs": 3, "val_every": 2, "accumulate_grad_batches": 2, "scheduler": "onecycle"}),
    ((1, 1, 1, 1, 100), {"max_steps": 7, "accumulate_grad_batches": 4, "num_workers": 1}),
    ((3, 3, None), {"task": "masked-lm", "max_steps": 8})])
def test_training_in_pieces_is_training_at_once_to_the_last_bit(new_run, pieces, fields):
    whole, divided = new_run("whole", **fields), in_pieces(new_run("divided", **fields), pieces)
    whole.fit()
    assert divided.ended and divided.step == whole.step
    assert equal(divided.weights(), whole.weights())
    assert divided.finish().metrics == whole.finish().metrics
    assert (divided.folder / "metrics.csv").read_text() == (whole.folder / "metrics.csv").read_text()


def test_an_epoch_has_one_start_and_one_end_in_however_many_pieces(new_run):
    epochs = []
    run = new_run("run", max_epochs=2)
    run.prepare()
    run.module.on_train_epoch_start = lambda: epochs.append(("start", run.step))
    run.module.on_train_epoch_end = lambda: epochs.append(("end", run.step))
    in_pieces(run, [2, 2, 2, None])
    assert run._datamodule.batches_per_epoch(1) == 5
    assert epochs == [("start", 0), ("end", 5), ("start", 5), ("end", 10)]


def test_early_stopping_ends_a_run_for_good(new_run):
    run = new_run("run", lr=0.5, gradient_clip_val=None, scheduler="none", max_steps=500, val_every=1,
                  early_stopping_patience=2)
    while not run.ended:
        run.fit(4)
    stopped = run.step
    run.fit(4)
    assert run.step == stopped < 100


def test_two_runs_that_take_turns_do_not_disturb_each_other(new_run):
    alone, *turns = (new_run(name, max_steps=6) for name in ("alone", "first", "second"))
    for _ in range(2):
        for run in turns:
            run.fit(3)
    alone.fit()
    assert all(equal(run.weights(), alone.weights()) for run in turns)


def test_to_take_ones_own_weights_changes_nothing(new_run):
    plain, taking = new_run("plain", max_steps=7), new_run("taking", max_steps=7)
    plain.fit()
    for steps in (3, None):
        taking.take(taking.weights())
        taking.fit(steps)
    taking.take(taking.weights())
    assert equal(taking.weights(), plain.weights())
    assert taking.finish().metrics == plain.finish().metrics


def test_taken_weights_are_measured_and_become_the_runs_model_where_they_are_better(new_run):
    teacher, run = new_run("teacher", max_steps=20), new_run("run", max_steps=1)
    teacher.fit()
    run.fit()
    taken = teacher.weights()
    run.take(taken)
    assert equal(run.weights(), taken)
    assert run.finish().metrics["val_loss"] == teacher.measure()["val_loss"]
    for tensor in taken.values():
        tensor.zero_()  # copies were given and taken
    assert run.weights()["embedding.weight"].any() and teacher.weights()["embedding.weight"].any()


@pytest.mark.parametrize(("change", "text"), [
    (lambda weights: weights.pop("embedding.weight"), r"embedding.weight is no such tensor; expected \[\d+, 16\]"),
    (lambda weights: weights.update(extra=torch.ones(2)), r"extra is \[2\]; expected no such tensor"),
    (lambda weights: weights.update({"embedding.weight": torch.ones(2, 3)}), r"embedding.weight is \[2, 3\]; expected \[")])
def test_weights_of_another_model_are_refused(new_run, change, text):
    run = new_run("run")
    weights = run.weights()
    change(weights)
    with pytest.raises(SpecError, match=text):
        run.take(weights)


def test_measuring_between_pieces_changes_nothing(new_run, texts):
    plain, measured = new_run("plain", max_steps=6), new_run("measured", max_steps=6, test_path=str(texts))
    plain.fit()
    assert measured.measure().keys() == {"val_loss", "val_perplexity", "val_bits_per_byte"}
    measured.fit(3)
    assert measured.measure("test").keys() == {"test_loss", "test_perplexity", "test_bits_per_byte"}
    measured.fit()
    assert equal(plain.weights(), measured.weights())
    with pytest.raises(SpecError, match="test_path is none"):
        plain.measure("test")


def test_a_finished_run_trains_no_more(new_run):
    run = new_run("run", max_steps=2)
    run.fit(1)
    result = run.finish()
    assert run.finish() is result and result.metrics["step"] == 1
    with pytest.raises(RunError, match="this run is finished"):
        run.fit()
    with pytest.raises(ValueError, match="steps is 0"):
        run.fit(0)


def test_a_run_is_prepared_once_and_trains_on_what_it_prepared(new_run):
    run = new_run("run", max_steps=1)
    run.prepare()
    module, model = run.module, run.module.model
    run.prepare()
    run.fit()
    assert run.module is module and module.model is model and module.task is run.data.task
    assert json.loads((run.folder / "run.json").read_text())["train"] == run.config.to_data()


def test_the_state_of_a_run_is_a_copy_of_what_training_depends_on(new_run, tmp_path):
    run = new_run("run", max_epochs=2, early_stopping_patience=9)
    assert run.state_dict()["optimizers"] == []
    run.fit(7)
    state = run.state_dict()
    assert {name for name, value in state.items() if not value} == {"scaler"}
    assert (state["step"], state["position"]) == (7, (1, 2))
    assert equal(state["weights"], run.weights())
    assert state["schedulers"][0]["last_epoch"] == 7
    moments = state["optimizers"][0]["state"][0]["exp_avg"].clone()
    run.fit()
    assert torch.equal(state["optimizers"][0]["state"][0]["exp_avg"], moments)
    torch.save(state, tmp_path / "state.pt")
