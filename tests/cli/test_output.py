"""What every command keeps of its output: any text gets out, a result stays alone, and a lost one is told."""

import io
import json
import os
import subprocess
import sys

import click
import pytest

from miniformer.cli.shared.output import Guarded, OutputLost, ResultCommand, guarded_streams, result_is_in_a_file, say
from miniformer.cli.shared.tables import labelled, table

from .test_list_components import distribution


class Full(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text):
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError


@pytest.fixture
def written(monkeypatch):
    """What is written to standard output and standard error of an encoding, as bytes; `write` writes it."""
    def run(encoding, write):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with guarded_streams():
            write()
        assert (sys.stdout, out.errors, err.errors) == (out, "strict", "strict")
        return out.buffer.getvalue(), err.buffer.getvalue()

    return run


@pytest.mark.parametrize(("encoding", "text", "expected"), [
    ("ascii", "é 日 😀", rb"\u00e9 \u65e5 \ud83d\ude00"), ("cp1252", "é 日", b"\xe9 \\u65e5"),
    ("utf-8", "é \udcff", "é \\udcff".encode()),
])
def test_what_an_encoding_lacks_is_written_as_an_escape(written, encoding, text, expected):
    def write():
        click.echo(text, nl=False)
        print(text, end="", file=sys.stderr)

    assert written(encoding, write) == (expected, expected)


def test_json_stays_json_in_any_encoding(written):
    data = {"text": "é 日 😀 \n"}
    out, _ = written("ascii", lambda: say(json.dumps(data, ensure_ascii=False)))
    assert json.loads(out.decode("ascii")) == data


def test_a_full_output_is_one_error_and_a_note_where_the_result_is_in_a_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    with guarded_streams(), pytest.raises(OutputLost, match="standard output cannot be written: No space left on device"):
        say("x")
    with guarded_streams():
        result_is_in_a_file()
        say("x")
        say("y")
    assert capsys.readouterr().err == ("note: standard output cannot be written: No space left on device; what is shown from "
                                       "here on is lost, and the command goes on\n")


def test_a_closed_output_is_told_and_a_closed_pipe_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    with guarded_streams(), pytest.raises(OutputLost, match="standard output cannot be written: it is closed"):
        say("x")
    monkeypatch.setattr(sys, "stdout", Closed())
    with guarded_streams():
        with pytest.raises(BrokenPipeError):
            say("x")
        sys.stdout = Guarded(Closed())
        result_is_in_a_file(is_finished=True)
        say("x")
    assert capsys.readouterr().err == ""


def test_what_standard_error_does_not_take_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    with guarded_streams():
        print("x", file=sys.stderr)


def test_a_result_is_alone_on_standard_output(capsys):
    @click.command(cls=ResultCommand)
    def command():
        print("loading")
        say("result")

    with guarded_streams():
        command.main([], standalone_mode=False)
        print("after")
    assert capsys.readouterr() == ("result\nafter\n", "loading\n")


def test_what_a_plugin_prints_at_import_is_not_in_the_json(cli, tmp_path):
    distribution(tmp_path, "loud", "loud = loud_module:X", "print('loaded')\nX = 1")
    done = cli("list-components", "ffn", "--load", "--json", PYTHONPATH=str(tmp_path))
    assert "loud" in [row["name"] for row in json.loads(done.stdout)]
    assert done.stderr == "loaded\n"


def test_a_full_disk_at_the_end_of_a_run_takes_nothing_from_it(texts, tiny, tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "miniformer", "train", "--train-path", str(texts), "--max-steps", "1", *tiny]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: standard output cannot be written: No space left on device")
    assert done.stderr.count("standard output") == 1
    assert (tmp_path / "runs/texts-language-modeling-1/checkpoints/best_model/model.safetensors").is_file()


# --- narrow terminals

def test_a_table_that_is_too_wide_has_its_rows_below_each_other():
    rows = [("name", "size", "what it is"), ("small", "1", "a model of few words"), ("large", "20", "")]
    assert list(table(rows, 20)) == ["name small", "  size        1", "  what it is", "    a model of few", "    words",
                                     "name large", "  size        20"]
    assert list(table(rows, None, to_the_right=[1])) == ["name   size  what it is", "small     1  a model of few words",
                                                         "large    20"]


def test_a_text_beside_its_label_goes_on_below_itself():
    assert list(labelled("decoding", "one two three four five six", 34, 10)) == ["decoding  one two three four five",
                                                                                 "          six"]
    assert list(labelled("decoding", "one two", 12, 10)) == ["decoding", "  one two"]


@pytest.mark.parametrize("width", [20, 50])
def test_at_a_small_width_no_word_is_cut_and_no_line_is_longer_than_its_longest_word(cli, trained, monkeypatch, width):
    commands = [["list-components", "norm", "--load"], ["inspect", str(trained)], ["describe", "adamw"]]
    wide = [cli(*command).stdout.split() for command in commands]
    monkeypatch.setenv("COLUMNS", str(width))
    for command, words in zip(commands[:2], wide[:2], strict=True):
        text = cli(*command).stdout
        assert set(words) <= set(text.split())
        assert all(len(line) <= width or len(line.split()) <= 3 for line in text.splitlines()), text


def test_at_50_columns_the_table_of_results_is_whole_and_the_next_command_in_one_line(cli, labelled, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = cli("train", "--train-path", str(labelled), "--task", "classification", "--max-steps", "1", *tiny,
               "--experiment-name", "a-name-that-is-long").stdout
    assert "this model\n  loss      " in text and "\n  accuracy  " in text
    assert "\nnext: miniformer predict runs/a-name-that-is-long --input FILE.jsonl\n" in text
