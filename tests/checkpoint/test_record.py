"""What run.json says of how far a run is, and what a user of its model is told."""

import json

import pytest

from miniformer.checkpoint.record import Record, note_on_run
from miniformer.checkpoint.store import BEST


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / BEST).mkdir(parents=True)
    return tmp_path / "run"


def test_what_decides_a_run_stays_whatever_becomes_of_it(run):
    record = Record(run, {"train": {"lr": 0.1}}, writes=True)
    record.write("running", 0)
    record.write("stopped", 7, signal="SIGINT")
    assert json.loads((run / "run.json").read_text()) == {"train": {"lr": 0.1}, "status": "stopped", "step": 7,
                                                          "signal": "SIGINT"}


def test_a_process_that_writes_no_files_writes_no_record(run):
    Record(run, {}, writes=False).write("running", 3)
    assert not (run / "run.json").exists()


@pytest.mark.parametrize(("said", "note"), [
    ({"status": "stopped", "step": 7, "signal": "SIGTERM"}, "the run was stopped at step 7 by SIGTERM; this is its best model"),
    ({"status": "failed", "step": 7, "error": "x"}, "the run failed at step 7; this is its best model so far"),
    ({"status": "running", "step": 7}, "the run is not finished: it is still at work, or it was killed after step 7; this is"),
])
def test_the_model_of_a_run_that_is_not_finished_comes_with_a_note(run, said, note):
    (run / "run.json").write_text(json.dumps(said))
    assert note_on_run(run / BEST).startswith(note)


@pytest.mark.parametrize("content", ['{"status": "finished", "step": 9}', '{"train": {}, "results": {}}', "[]", "{", None,
                                     '{"status": ["odd"]}'])
def test_of_a_finished_run_an_older_or_a_damaged_record_there_is_no_note(run, content):
    if content is not None:
        (run / "run.json").write_text(content)
    assert note_on_run(run / BEST) == ""


def test_a_model_outside_a_run_has_no_note(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "failed", "step": 1}')
    assert note_on_run(tmp_path / "model") == note_on_run(tmp_path) == ""
