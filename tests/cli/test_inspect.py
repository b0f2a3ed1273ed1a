"""`miniformer inspect`: of a file, of a run, and against a memory size."""

import json

import pytest


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "model.yaml").write_text("{vocab_size: 1000, d_model: 64, n_heads: 4, n_layers: 2, causal: true}")
    return "model.yaml"


def test_a_spec_is_shown_by_parts_and_in_all(cli, spec):
    text = cli("inspect", spec).stdout
    assert "layer 1    mha, rope, swiglu, rmsnorm" in text
    assert "parameters  195,392: 0.75 MiB in fp32, 0.37 MiB in bf16" in text
    assert "training" in text


def test_json_has_the_same_numbers(cli, spec):
    facts = json.loads(cli("inspect", spec, "--json", "--batch-size", "3", "--length", "10").stdout)
    assert facts["parameters"] == 195_392
    assert facts["state_bytes"] == 2 * 2 * 3 * 10 * 64 * 4


@pytest.mark.parametrize(("size", "verdict"), [("1MB", "does not fit"), ("8 GiB", "fits"), ("0.5k", "does not fit")])
def test_it_says_whether_training_fits(cli, spec, size, verdict):
    assert cli("inspect", spec, "--memory", size).stdout.splitlines()[-1].endswith(f": {verdict}")


def test_a_run_is_inspected_by_its_folder_and_by_its_file(cli, trained):
    assert cli("inspect", str(trained)).stdout == cli("inspect", str(trained / "run.json")).stdout


def test_an_encoder_decoder_is_not_counted_as_something_else(cli, tmp_path):
    (tmp_path / "run.yaml").write_text("{model: seq2seq, model_config: {d_model: 64}}")
    assert "model 'seq2seq': only models of one stack (transformer) are counted" in cli("inspect", "run.yaml", code=2).stderr


@pytest.mark.parametrize(("args", "text"), [
    (["nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
    (["."], "no run and no saved model here"),
    (["model.yaml", "--memory", "8XB"], "expected a size such as 8GB or 512MB"),
])
def test_what_cannot_be_inspected_is_told(cli, spec, args, text):
    assert text in cli("inspect", *args, code=2).stderr
