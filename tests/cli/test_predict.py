"""`miniformer predict`, on real runs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"the quick brown fox {n}", "id": n}) + "\n" for n in range(20)))
    return path


def test_a_language_model_says_how_likely_texts_are(cli, trained, inputs):
    done = cli("predict", str(trained), "--input", str(inputs))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == list(range(20))
    assert all(row["prediction"]["tokens"] > 0 and row["prediction"]["nats"] > 0 for row in rows)
    assert "predictions: 20" in done.stderr


def test_standard_input_and_a_file_give_the_same(trained, cli, inputs, tmp_path):
    cli("predict", str(trained), "--input", "in.jsonl", "--output", "out.jsonl")
    piped = subprocess.run([sys.executable, "-m", "miniformer", "predict", str(trained), "--input", "-"], check=True,
                           input=inputs.read_bytes(), capture_output=True, cwd=tmp_path).stdout
    assert piped == (tmp_path / "out.jsonl").read_bytes()


def test_ctrl_c_leaves_whole_lines_to_go_on_with(cli, trained, tmp_path):
    source, output = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": f"the quick brown fox {n} " * 4}) + "\n" for n in range(4000)))
    command = [sys.executable, "-m", "miniformer", "predict", str(trained), "--input", str(source), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ)
    while not (output.exists() and output.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "Ctrl-C: predictions written: " in told and "--resume continues it" in told
    half = output.read_bytes()
    assert half.endswith(b"\n") and 0 < half.count(b"\n") < 4000
    cli("predict", str(trained), "--input", str(source), "--output", str(output), "--resume")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert output.read_bytes().startswith(half)
    assert [row["text"] for row in rows] == [json.loads(line)["text"] for line in source.read_text().splitlines()]


def test_a_record_that_cannot_be_predicted_is_reported_and_left_out(cli, trained, inputs, tmp_path):
    lines = inputs.read_text().splitlines()
    inputs.write_text("\n".join([*lines[:3], '{"text": 5}', *lines[3:6], "{"]) + "\n")
    for output in (("--output", "out.jsonl"), ()):
        done = cli("predict", str(trained), "--input", "in.jsonl", *output, code=2)
        written = (tmp_path / "out.jsonl").read_text() if output else done.stdout
        assert [json.loads(line)["id"] for line in written.splitlines()] == [0, 1, 2, 3, 4, 5]
        assert "left out: in.jsonl:4: field 'text': input should be a valid string; found 5\n" in done.stderr
        assert "left out: in.jsonl:8: not JSON: " in done.stderr
        assert "error: records that were not predicted: 2; predictions written: 6" in done.stderr


@pytest.mark.parametrize(("args", "told"), [
    (("--input", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    (("--input", "in.jsonl", "--resume"), "--resume continues a file; give --output too"),
    (("--input", "in.jsonl", "--output", "in.jsonl"), "in.jsonl exists already"),
    (("--input", "in.jsonl", "--output", ".", "--resume"), ".: a directory; expected a file to write"),
    (("--input", "in.jsonl", "--output", "in.jsonl", "--resume"), "in.jsonl:1: not a prediction for in.jsonl:1"),
])
def test_mistakes_are_told(cli, trained, inputs, args, told):
    before = inputs.read_bytes()
    assert told in cli("predict", str(trained), *args, code=2).stderr
    assert inputs.read_bytes() == before


def test_a_folder_without_a_model_is_refused(cli, inputs, tmp_path):
    assert "no saved model here" in cli("predict", str(tmp_path), "--input", str(inputs), code=2).stderr
