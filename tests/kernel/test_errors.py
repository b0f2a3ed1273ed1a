import signal

import pytest

from miniformer.kernel import errors
from miniformer.kernel.errors import did_you_mean


@pytest.mark.parametrize(("error", "code"), [
    (errors.UnknownComponent("x"), 2), (errors.AmbiguousComponent("x"), 2), (errors.UnavailableComponent("x"), 2),
    (errors.SpecError("x"), 2), (errors.DataError("x"), 2), (errors.RunError("x"), 1),
    (errors.Interrupted("x", signal.SIGINT), 130), (errors.Interrupted("x", signal.SIGTERM), 143),
])
def test_exit_codes_tell_the_users_mistakes_from_failed_and_stopped_runs(error, code):
    assert error.exit_code == code


def test_a_hint_offers_the_nearest_names_best_first():
    assert did_you_mean("swigl", ["gelu", "swiglus", "swiglu"]) == "; did you mean 'swiglu' or 'swiglus'?"


@pytest.mark.parametrize(("name", "names", "hint"), [
    ("learning-rate", ["lr", "early-stopping-patience"], "; did you mean 'lr'?"),
    ("hidden_size", ["batch_size", "d_model"], "; did you mean 'd_model'?"),
    ("num_layers", ["num_workers", "n_layers"], "; did you mean 'n_layers'?"),
    ("--data", ["--cache", "--train-path"], "; did you mean '--train-path'?"),
    ("--data", ["--input", "--output"], "; did you mean '--input'?"),
    ("max_tokens", ["max_steps", "max_new_tokens"], "; did you mean 'max_new_tokens'?"),
    ("patience", ["precision", "early_stopping_patience"], "; did you mean 'early_stopping_patience'?"),
    ("fp16", ["precision"], "; did you mean 'precision'?"),
    ("LR", ["lr"], "; did you mean 'lr'?"),
    ("eval", ["evaluate", "train"], "; did you mean 'evaluate'?"),
])
def test_names_that_other_tools_use_are_known(name, names, hint):
    assert did_you_mean(name, names) == hint


@pytest.mark.parametrize(("name", "names"), [("image_size", ["batch_size"]), ("betas", ["task"]),
                                             ("checkpoint_folder", ["checkpoint_metric"]), ("kernel_size", ["tokenizer"])])
def test_a_name_that_is_not_alike_enough_is_no_hint(name, names):
    assert did_you_mean(name, names) == ""


def test_of_a_setting_that_only_other_tools_have_the_hint_says_so():
    assert did_you_mean("--lora", ["--lr"], settings=True) == "; there is no LoRA here: a run trains all weights of a new model"
    assert did_you_mean("--resume", ["--resume-all", "--resume"], settings=True) == "; did you mean '--resume'?"
    assert "cannot be continued" in did_you_mean("--resume", ["--seed"], settings=True)
    assert did_you_mean("lora", ["lr", "loras"]) == "; did you mean 'loras'?"  # these may be labels


def test_there_is_no_hint_when_nothing_is_near():
    assert did_you_mean("zzz", ["gelu", "swiglu"]) == ""
