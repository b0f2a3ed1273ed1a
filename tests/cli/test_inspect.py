"""`miniformer inspect`: of a file, of a run, and against a memory size."""

import json

import pytest

from miniformer.model.seq2seq_transformer import Seq2SeqTransformer


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "model.yaml").write_text("{vocab_size: 1000, d_model: 64, n_heads: 4, n_layers: 2, causal: true}")
    (tmp_path / "other.yaml").write_text("{d_model: 64, model: seq3seq}")
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


@pytest.mark.parametrize(("facts", "told"), [
    ({}, "finished at step 60"), ({"status": "stopped", "step": 3, "signal": "SIGTERM"}, "stopped at step 3 by SIGTERM"),
    ({"status": "failed", "step": 2}, "failed at step 2"), ({"status": "running", "step": 7}, "still at work, or killed")])
def test_of_a_run_it_says_how_far_it_is(cli, trained, tmp_path, facts, told):
    record = {**json.loads((trained / "run.json").read_text()), **facts}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert told in " ".join(cli("inspect", "run.json").stdout.split())
    run = json.loads(cli("inspect", "run.json", "--json").stdout)["run"]
    assert run == {name: record[name] for name in ("status", "step", "signal") if name in record}


def test_a_run_of_an_encoder_decoder_is_shown_by_its_layers(cli, answering):
    text = cli("inspect", str(answering), "--length", "10", "--source-length", "20").stdout
    names = [line.split("  ")[0] for line in text.split("\n\n")[0].splitlines()]
    assert names == ["source embedding", "encoder layer 0", "encoder norm",
                     "target embedding", "decoder layer 0", "decoder norm", "head"]
    assert "decoder layer 0   mha, rope, swiglu, rmsnorm, cross_attention mha" in text
    facts = json.loads(cli("inspect", str(answering / "run.json"), "--json").stdout)
    saved = Seq2SeqTransformer.from_pretrained(answering)
    assert facts["parameters"] == sum(p.numel() for p in saved.parameters())
    assert f"parameters  {facts['parameters']:,}: " in text
    assert "of state; 1 x 20 -> 10 tokens, fp32" in text


@pytest.mark.parametrize(("text", "parts"), [
    ("{d_model: 64, n_layers: 1, model: seq2seq}", ["cross_attention mha", "lm"]),
    ("{d_model: 64, n_layers: 1, model: transformer}", ["mha, rope", "lm"]),
    ("{model_config: {d_model: 64, n_layers: 1}, model: seq2seq}", ["cross_attention mha", "lm"]),
    ("{model_config: {d_model: 64, n_layers: 1}, task: seq2seq}", ["cross_attention mha", "lm"]),
    ("{model_config: {d_model: 64, n_layers: 1}, task: language-modeling}", ["of state", "lm"]),
    ("{model_config: {d_model: 64, n_layers: 1}, task: regression}", ["no state", "regression"]),
])
def test_a_file_says_by_its_model_or_task_what_is_counted(cli, tmp_path, text, parts):
    (tmp_path / "file.yaml").write_text(text)
    shown = cli("inspect", "file.yaml").stdout
    assert all(part in shown for part in parts)
    assert ("decoder layer 0" in shown) == ("cross_attention" in shown) == ("cross_attention mha" in parts)


@pytest.mark.parametrize(("args", "text"), [
    (["nowhere.yaml"], "nowhere.yaml: there is no run, model or file of that name"),
    (["."], "no run and no saved model here"),
    (["model.yaml", "--memory", "8XB"], "expected a size such as 8GB or 512MB"),
    (["model.yaml", "--source-length", "8"], "model 'transformer' has no source"),
    (["other.yaml"], "there is no assembly named 'seq3seq'\n  did you mean: seq2seq"),
])
def test_what_cannot_be_inspected_is_told(cli, spec, args, text):
    assert text in cli("inspect", *args, code=2).stderr
