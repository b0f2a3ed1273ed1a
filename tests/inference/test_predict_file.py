"""A file with predictions: every field as it was, lines whole whatever happens, and gone on with where it stopped."""

import io
import json

import pytest
import torch
from task_models import model_for

import miniformer.inference.predict_file as module
from miniformer.data.jsonl import read_lines
from miniformer.data.tokenizer import Tokenizer
from miniformer.inference.load import Trained
from miniformer.inference.predict import predict
from miniformer.inference.predict_file import predict_file
from miniformer.kernel import DataError, Interrupted, RunError, UserError
from miniformer.tasks.classification import Classification

TOKENIZER = Tokenizer.train(["some words"], 261)
TASK = Classification(labels=("a", "b"))
TRAINED = Trained(model_for(TASK, 261), TOKENIZER, TASK)
LINES = [b'{"input": "x", "id": 1.10}', b' {"label": 0.5, "input": "caf\\u00e9"} ', b'{"input":"",  "n": [1e5, {"a": null}] }',
         '{"input": "naïve 🦜"}'.encode()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n\n".join(LINES) + b"\n")
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def write(source, output, **options):
    return predict_file(TRAINED, source, output, **options)


def whole(source, tmp_path):
    """What an uninterrupted command writes."""
    write(source, tmp_path / "whole.jsonl")
    return (tmp_path / "whole.jsonl").read_bytes()


def test_every_field_is_kept_to_the_last_digit(source, output):
    assert write(source, output) == 4
    written = output.read_bytes().splitlines()
    for line, before in zip(written, LINES, strict=True):
        assert line.startswith(before.rstrip()[:-1].rstrip() + b', "prediction": {')


def test_predictions_are_those_of_the_records(source, output):
    write(source, output)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    records = [json.loads(line) for line in LINES]
    assert [row.pop("prediction") for row in written] == list(predict(TRAINED, records))
    assert written == records


def test_an_object_may_be_made_of_nothing_else(tmp_path):
    """Where a task wants no field, a line is an empty object."""
    from miniformer.data.jsonl import Line

    assert module._completed(Line("f:1", "{ }", {}, None), {"a": 1}) == b'{"prediction": {"a": 1}}\n'


def test_a_file_that_is_there_is_not_written_over(source, output):
    output.write_text("precious")
    with pytest.raises(UserError, match=r"out\.jsonl exists already; to continue it: --resume"):
        write(source, output)
    assert output.read_text() == "precious"


@pytest.mark.parametrize("cut", [0, 1, 60, 130, 200, 10**6])
def test_a_command_that_was_killed_anywhere_is_gone_on_with(source, output, tmp_path, cut):
    expected = whole(source, tmp_path)
    output.write_bytes(expected[:cut])
    done = expected[:cut].count(b"\n")
    assert write(source, output, resume=True) == 4 - done
    assert output.read_bytes() == expected


def test_to_go_on_with_what_is_not_there_is_to_begin(source, output, tmp_path):
    assert write(source, output, resume=True) == 4
    assert output.read_bytes() == whole(source, tmp_path)


def test_an_output_of_another_input_is_refused(source, output, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_bytes(LINES[0] + b"\n" + LINES[3] + b"\n")
    write(other, output)
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"out\.jsonl:2: not a prediction for .*in\.jsonl:3; this output belongs to another"):
        write(source, output, resume=True)
    other.write_bytes(LINES[0] + b"\n")
    with pytest.raises(UserError, match=r"out\.jsonl:2: .*other\.jsonl has no line for this one"):
        write(other, output, resume=True)
    assert output.read_bytes() == before


def test_to_go_on_without_a_file_is_refused(source):
    with pytest.raises(UserError, match="--resume continues a file; give --output too"):
        predict_file(TRAINED, source, resume=True)


def test_a_field_of_that_name_is_not_written_twice(source, output, tmp_path):
    write(source, output)
    with pytest.raises(DataError, match=r"out\.jsonl:1: it has a field 'prediction' already"):
        write(output, tmp_path / "again.jsonl")


BAD = [b'{"input": 5}', b'{"input": "x"', b'[1]', b'{"other": "x"}', b'{"input": [[1], [2, 3]]}']


def among(good, *bad):
    """The good lines, with a bad one after each as far as they go."""
    return b"".join(line + b"\n" for n, line in enumerate(good) for line in (line, *bad[n:n + 1]))


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_a_record_that_cannot_be_predicted_is_reported_and_the_others_are_written(source, output, tmp_path, monkeypatch, chunk):
    expected = whole(source, tmp_path)
    monkeypatch.setattr("miniformer.inference.predict.CHUNK", chunk)
    source.write_bytes(among(LINES, *BAD[:4]))
    with pytest.raises(DataError) as caught:
        write(source, output)
    told = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in told[:4]] == ["2", "4", "6", "8"], "the line of each"
    assert told[0].startswith(f"{source}:2: field 'input': expected a text")
    assert told[4] == "  records that were not predicted: 4; predictions written: 4"
    assert output.read_bytes() == expected


def test_records_that_are_not_predicted_are_told_as_they_come_to_whoever_asks(source, output):
    source.write_bytes(among(LINES, *BAD[:2]))
    found = []
    with pytest.raises(DataError, match=r"^records that were not predicted: 2; predictions written: 4$"):
        write(source, output, refused=found.append)
    assert [str(error).split(": ")[0] for error in found] == [f"{source}:2", f"{source}:4"]


def test_an_error_lists_the_first_records_that_are_not_predicted(source, output):
    source.write_bytes(LINES[0] + b"\n" + BAD[0] + (b"\n" + BAD[0]) * 19)
    with pytest.raises(DataError) as caught:
        write(source, output)
    assert len(str(caught.value).splitlines()) == 11
    assert "not predicted: 20; predictions written: 1" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 60, 130, 10**6])
def test_an_output_without_the_bad_records_is_gone_on_with(source, output, tmp_path, cut):
    expected = whole(source, tmp_path)
    source.write_bytes(among(LINES, *BAD[:4]))
    output.write_bytes(expected[:cut])
    with pytest.raises(DataError, match="not predicted: 4"):
        write(source, output, resume=True)
    assert output.read_bytes() == expected


def test_ctrl_c_leaves_whole_lines_and_says_how_to_go_on(source, output, tmp_path, monkeypatch):
    completed = module._completed

    def interrupted(line, prediction):
        if line.where.endswith(":5"):
            raise KeyboardInterrupt
        return completed(line, prediction)

    monkeypatch.setattr(module, "_completed", interrupted)
    with pytest.raises(Interrupted, match=r"Ctrl-C: predictions written: 2; .*--resume continues it") as caught:
        write(source, output)
    assert caught.value.exit_code == 130
    monkeypatch.setattr(module, "_completed", completed)
    expected = whole(source, tmp_path)
    assert output.read_bytes() == b"".join(expected.splitlines(keepends=True)[:2])


def test_ctrl_c_while_progress_is_shown_is_told_alike(source, output):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="predictions written: 1; "):
        write(source, output, written=interrupt)
    assert output.read_bytes().count(b"\n") == 1


class Torn(io.FileIO):
    """A file in which the third write is broken off."""

    writes = 0

    def write(self, data):
        self.writes += 1
        if self.writes == 3:
            super().write(data[:10])
            raise KeyboardInterrupt
        return super().write(data)


def test_ctrl_c_within_a_line_takes_it_back(source, output):
    with Torn(output, "ab") as file, pytest.raises(Interrupted, match="predictions written: 2"):
        module._write(TRAINED, read_lines(source, TASK.Input), file, "; go on", 32, lambda line: None)
    assert output.read_bytes().count(b"\n") == 2 and output.read_bytes().endswith(b"}\n")


def test_a_prediction_that_is_no_number_is_told(source, output):
    model = model_for(TASK, 261)
    torch.nn.init.constant_(model.head.out.weight, float("nan"))
    with pytest.raises(RunError, match=r"in\.jsonl:1: the prediction is not a finite number"):
        predict_file(Trained(model, TOKENIZER, TASK), source, output)


def test_a_place_that_cannot_be_written_is_told(source, tmp_path):
    for place, told in {".": ": a directory; expected a file to write", "nowhere/out.jsonl": "nowhere: no such folder; make it",
                        "in.jsonl/out.jsonl": r"in\.jsonl: a file; expected a folder",
                        "/proc/out.jsonl": "/proc/out.jsonl: cannot be written: /proc: .*; choose another --output",
                        "/dev/null": "null: a device or a pipe; expected a file to write",
                        "n" * 300: "cannot be written: File name too long"}.items():
        for resume in (False, True):
            with pytest.raises(UserError, match=told):
                write(source, tmp_path / place, resume=resume)


def test_a_disk_that_is_full_is_told(source, output, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", refuse)
    with pytest.raises(RunError, match=r"out\.jsonl: cannot be written: No space left"):
        write(source, output)


def test_an_output_that_cannot_be_read_is_told(source, output, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    write(source, output)
    lines = read_lines(source, TASK.Input)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"out\.jsonl: cannot be read, to continue it: Permission denied"):
        module._pass_over(lines, output, source)
