"""Evaluation is what training measures, in any number of chunks, and tells a record that cannot be measured on."""

import json
import math

import pytest
from click.testing import CliRunner
from task_models import model_for

from miniformer.cli import cli
from miniformer.data.jsonl import read_records
from miniformer.data.tokenizer import Tokenizer
from miniformer.inference import evaluate as module
from miniformer.inference.evaluate import evaluate
from miniformer.inference.load import Trained, load
from miniformer.kernel import DataError
from miniformer.tasks.classification import Classification
from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train

RECORDS = {
    "language-modeling": [{"text": f"the {n} of {n * n} is a number, and {n} is {n % 7} " * (n % 4 + 1)} for n in range(30)],
    "prefix-lm": [{"text": f"the {n} of {n * n} is a number, and {n} is {n % 7} " * (n % 4 + 1)} for n in range(30)],
    "seq2seq": [{"source": f"say {n} please", "target": f"{n}"} for n in range(30)],
    "classification": [{"input": f"{n} bears", "label": ("few", "many")[n > 15]} for n in range(30)],
    "embedding": [{"anchor": f"say {n} please", "positive": f"{n}"} for n in range(30)],
    "regression": [{"input": [n, n + 1.5, n % 3], "value": n / 2} for n in range(30)],
}


@pytest.fixture(params=RECORDS)
def run(request, tmp_path):
    """A run that measured itself on a file at its end, and the file."""
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[request.param]))
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 24}
    return train(TrainConfig(train_path=str(path), val_path=str(path), task=request.param, work_dir=str(tmp_path / "runs"),
                             max_steps=2, batch_size=8, tokenizer_vocab_size=300, precision=32, model_config=model)), path


def test_it_is_what_the_run_measured_at_its_end(run):
    result, path = run
    trained = load(result.folder)
    found = evaluate(trained, read_records(path, trained.task.Record), batch_size=8)
    measured = {name.removeprefix("val_"): value for name, value in result.metrics.items() if name.startswith("val_")}
    assert found == pytest.approx(measured, rel=1e-5)
    if "perplexity" in found:
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_chunks_and_batches_are_no_matter_to_a_classifier(labelled, tmp_path, monkeypatch):
    result = train(TrainConfig(train_path=str(labelled), task="classification", work_dir=str(tmp_path), max_steps=2,
                               model_config={"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 24}))
    trained = load(result.folder)
    whole = evaluate(trained, read_records(labelled, trained.task.Record))
    monkeypatch.setattr(module, "CHUNK", 7)
    assert evaluate(trained, read_records(labelled, trained.task.Record), batch_size=3) == pytest.approx(whole, rel=1e-5)
    with pytest.raises(DataError, match=r"here:3: .*label"):
        evaluate(trained, [("here:3", trained.task.Record(input="a plum", label="vegetable"))])


def test_the_command_tells_records_loss_and_metrics(trained, tmp_path):
    path = tmp_path / "fox.jsonl"
    path.write_text("".join(json.dumps({"text": f"the quick brown fox jumps over the lazy dog. {n}"}) + "\n" for n in range(9)))
    args = ["evaluate", str(trained), "--data", str(path)]
    found = json.loads(CliRunner().invoke(cli, [*args, "--json"], catch_exceptions=False).stdout)
    assert found.keys() == {"records", "loss", "perplexity", "bits_per_byte"} and found["records"] == 9
    lines = CliRunner().invoke(cli, args, catch_exceptions=False).stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["records", "loss", "perplexity", "bits per byte"]
    piped = CliRunner().invoke(cli, [*args[:3], "-", "--json"], input=path.read_bytes(), catch_exceptions=False).stdout
    assert json.loads(piped) == found


def test_mistakes_are_told_at_once(cli, trained, tmp_path):
    assert "nowhere.jsonl: no such file" in cli("evaluate", str(trained), "--data", "nowhere.jsonl", code=2).stderr
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    told = cli("evaluate", str(trained), "--data", "wrong.jsonl", code=2).stderr
    assert "wrong.jsonl:2: field 'text' is missing" in told


def test_json_has_null_for_what_is_no_finite_number(trained, tmp_path, monkeypatch):
    (tmp_path / "fox.jsonl").write_text('{"text": "the quick"}\n')
    monkeypatch.setattr(module, "evaluate", lambda *args, **options: {"loss": math.nan, "perplexity": math.inf, "f1": 0.5})
    args = ["evaluate", str(trained), "--data", str(tmp_path / "fox.jsonl"), "--json"]
    said = CliRunner().invoke(cli, args, catch_exceptions=False).stdout
    assert said == '{"records": 0, "loss": null, "perplexity": null, "f1": 0.5}\n'


def test_what_a_user_should_know_of_the_records_is_logged(caplog):
    task, tokenizer = Classification(labels=("few", "many")), Tokenizer.train(["some words"], 261)
    trained = Trained(model_for(task, 261), tokenizer, task)
    limit = trained.model.config.max_seq_len
    records = [task.Record(input="x" * (limit * 2 if n < 3 else 1), label="few") for n in range(4)]
    evaluate(trained, [(f"bears.jsonl:{n}", record) for n, record in enumerate(records, start=1)])
    longest = len(tokenizer.encode("x" * limit * 2))
    assert caplog.messages == [
        f"bears.jsonl: 3 of 4 texts were cut to {limit} tokens, the longest from {longest}; a model with a larger max_seq_len "
        "reads more of them",
        "bears.jsonl: only 4 evaluated records, so a figure measured on them says little",
        "bears.jsonl: every evaluated record has the label 'few', so figures on them do not tell whether a model can tell "
        "labels apart"]


def test_a_file_in_which_nothing_can_be_measured_is_refused(cli, trained, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    told = cli("evaluate", str(trained), "--data", "empty.jsonl", code=2)
    assert told.stderr.endswith("error: empty.jsonl: nothing to measure on: all texts are empty; expected some text\n")
    assert told.stdout == ""
