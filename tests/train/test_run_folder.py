"""What becomes of a run's folder, and of its run.json, when the run ends before its time."""

import json

import pytest

from miniformer.checkpoint.record import Record
from miniformer.kernel import Interrupted, RunError, WriteError
from miniformer.train.run_folder import errors_name


@pytest.fixture
def record(tmp_path):
    """Of a run that has saved something, at step 3."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    record = Record(tmp_path / "run", {"train": {}}, writes=True)
    record.write("running", 0)
    return record


def ended(record, error):
    with pytest.raises(type(error)) as caught, errors_name(record, lambda: 3):
        raise error
    return str(caught.value), json.loads((record.folder / "run.json").read_text())


@pytest.mark.parametrize(("error", "facts"), [
    (Interrupted("SIGTERM: stopped", 15), {"status": "stopped", "step": 3, "signal": "SIGTERM"}),
    (KeyboardInterrupt(), {"status": "stopped", "step": 3, "signal": "SIGINT"}),
    (RunError("the loss is nan\nand more"), {"status": "failed", "step": 3, "error": "the loss is nan"}),
    (ZeroDivisionError(), {"status": "failed", "step": 3, "error": "ZeroDivisionError"}),
])
def test_a_run_that_ends_before_its_time_says_how_and_at_which_step(record, error, facts):
    assert ended(record, error)[1] == {"train": {}, **facts}


@pytest.mark.parametrize("error", [RunError("x"), WriteError("x")])
def test_an_error_keeps_its_kind_and_gets_the_run_folder(record, error):
    assert ended(record, error)[0] == f"x (run folder: {record.folder})"


def test_a_full_disk_on_which_run_json_cannot_be_written_either_is_told_once(record, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miniformer.checkpoint.atomic._put", fail)
    said, kept = ended(record, WriteError("last.ckpt: cannot be written"))
    assert said == f"last.ckpt: cannot be written (run folder: {record.folder})"
    assert kept["status"] == "running", "it is as it was"


def test_a_folder_that_somebody_has_removed_hides_no_error(record):
    (record.folder / "metrics.csv").unlink()
    (record.folder / "run.json").unlink()
    record.folder.rmdir()
    with pytest.raises(RunError, match="the loss is nan"), errors_name(record, lambda: 3):
        raise RunError("the loss is nan")


def test_a_process_that_writes_no_files_removes_none(tmp_path):
    (tmp_path / "run.json").touch()
    with pytest.raises(RunError, match="run folder"), errors_name(Record(tmp_path, {}, writes=False), lambda: 3):
        raise RunError("x")
    assert (tmp_path / "run.json").exists()
