import errno
import json
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from miniformer.checkpoint.atomic import reported, settled, write_file, write_folder, write_json
from miniformer.kernel import RunError, WriteError


class Stopped(Exception):
    pass


def new(folder):
    (folder / "a").write_text("new a")
    (folder / "b").write_text("new b")


def half(folder):
    (folder / "a").write_text("new a")
    raise Stopped


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_folder_is_made_with_all_its_files_and_its_parents(tmp_path):
    write_folder(tmp_path / "x" / "model", new)
    assert contents(tmp_path / "x" / "model") == {"a": "new a", "b": "new b"}
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["model"]


def test_a_folder_is_replaced_whole(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "old").write_text("old"))
    write_folder(tmp_path / "model", new)
    assert contents(tmp_path / "model") == {"a": "new a", "b": "new b"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_fails_half_way_is_absent(tmp_path):
    with pytest.raises(Stopped):
        write_folder(tmp_path / "model", half)
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_half_way_leaves_the_old_folder(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("old a"))
    with pytest.raises(Stopped):
        write_folder(tmp_path / "model", half)
    assert contents(tmp_path / "model") == {"a": "old a"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_replacement_that_was_stopped_between_its_renames_is_read_as_before(tmp_path):
    write_folder(tmp_path / "model", new)
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    assert contents(settled(tmp_path / "model")) == {"a": "new a", "b": "new b"}


def test_a_replacement_that_is_stopped_between_its_renames_loses_nothing(tmp_path, monkeypatch):
    rename, path = os.rename, tmp_path / "model"

    def stop(source, target):
        if target == path:
            raise Stopped
        rename(source, target)

    write_folder(path, lambda folder: (folder / "a").write_text("old a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        with pytest.raises(Stopped):
            write_folder(path, new)
    assert contents(settled(path)) == {"a": "old a"}


def test_a_replacement_that_fails_after_a_stopped_one_leaves_the_old_folder(tmp_path):
    write_folder(tmp_path / "model", new)
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    with pytest.raises(Stopped):
        write_folder(tmp_path / "model", half)
    assert contents(settled(tmp_path / "model")) == {"a": "new a", "b": "new b"}


def test_a_replacement_after_a_stopped_one_succeeds(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("old"))
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    write_folder(tmp_path / "model", new)
    assert contents(tmp_path / "model") == {"a": "new a", "b": "new b"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_is_left_of_a_finished_replacement_is_not_read_and_is_removed_by_the_next(tmp_path):
    write_folder(tmp_path / "model", new)
    (tmp_path / ".model.previous").mkdir()
    (tmp_path / ".model.previous" / "a").write_text("left")
    assert contents(settled(tmp_path / "model")) == {"a": "new a", "b": "new b"}
    write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("newer"))
    assert contents(tmp_path / "model") == {"a": "newer"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_to_read_a_folder_that_is_being_replaced_is_not_in_the_way(tmp_path, monkeypatch):
    rename, path, read = os.rename, tmp_path / "model", []

    def renamed(source, target):
        if target == path:
            read.append(contents(settled(path)))
        rename(source, target)

    write_folder(path, lambda folder: (folder / "a").write_text("old a"))
    monkeypatch.setattr(os, "rename", renamed)
    write_folder(path, new)
    assert (read, contents(path)) == ([{"a": "old a"}], {"a": "new a", "b": "new b"})


def test_what_was_never_there_stays_absent(tmp_path):
    assert not settled(tmp_path / "model").exists()


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "x" / "f", lambda file: file.write_text("old"))
    write_file(tmp_path / "x" / "f", lambda file: file.write_text("new"))
    assert contents(tmp_path / "x") == {"f": "new"}


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    def fail(file):
        file.write_text("ne")
        raise Stopped

    (tmp_path / "f").write_text("old")
    with pytest.raises(Stopped):
        write_file(tmp_path / "f", fail)
    assert contents(tmp_path) == {"f": "old"}


def test_files_and_folders_can_be_read_by_whom_the_umask_lets(tmp_path):
    write_file(tmp_path / "f", lambda file: file.write_text(""))
    write_folder(tmp_path / "d", new)
    (tmp_path / "plain").touch()
    (tmp_path / "dir").mkdir()
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "d").stat().st_mode == (tmp_path / "dir").stat().st_mode


@pytest.mark.parametrize("write", [lambda path: write_file(path, lambda file: None), lambda path: write_json(path, {}),
                                   lambda path: write_folder(path, new)])
def test_a_place_that_cannot_be_written_is_a_failed_run(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/below: cannot be written: "):
        write(tmp_path / "file" / "below")


def test_json_is_readable_and_ends_with_a_line(tmp_path):
    write_json(tmp_path / "f.json", {"name": "Größe", "n": [1, 2]})
    text = (tmp_path / "f.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Größe", "n": [1, 2]}
    assert "Größe" in text
    assert text.endswith("}\n")


def test_a_number_that_json_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# --- a disk that is full

@pytest.fixture
def small_files():
    """Files may have 4,000 bytes, as under a quota: the system refuses to write more, and says so in its own words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("write", "reason"), [
    (lambda path: write_json(path, "x" * 9000), "File too large"),
    (lambda path: write_file(path, lambda file: torch.save(torch.zeros(9000), file)), "not all of it could be written"),
    (lambda path: write_folder(path, lambda folder: (folder / "a").write_text("x" * 9000)), "File too large"),
])
def test_a_file_for_which_there_is_no_room_is_told_with_the_room_that_is_left(tmp_path, small_files, write, reason):
    with pytest.raises(WriteError, match=rf"it: cannot be written: {reason}; [0-9,.]+ [GM]iB are free there$") as error:
        write(tmp_path / "it")
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


@pytest.mark.parametrize(("error", "told"), [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; 0.0 MiB are free there"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; 0.0 MiB are free there"),
    (OSError("9000 requested and 12 written"), "9000 requested and 12 written; 0.0 MiB are free there"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
     "No space left on device; 0.0 MiB are free there"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
     "not all of it could be written; 0.0 MiB are free there"),
    (RuntimeError("basic_ios::clear: iostream error"), "not all of it could be written; 0.0 MiB are free there"),
    (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
])
def test_each_library_says_in_its_own_way_that_a_file_cannot_be_written(tmp_path, monkeypatch, error, told):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(WriteError) as caught, reported(tmp_path / "f"):
        raise error
    assert str(caught.value) == f"{tmp_path / 'f'}: cannot be written: {told}"


def test_an_error_that_has_nothing_to_do_with_a_disk_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), reported(tmp_path / "f"):
        raise RuntimeError("a bug")


def test_of_a_folder_the_file_that_could_not_be_written_is_named(tmp_path):
    def write(folder):
        with reported(folder / "weights"):
            raise OSError(errno.EFBIG, "File too large")

    with pytest.raises(WriteError) as error:
        write_folder(tmp_path / "model", write)
    assert str(error.value).startswith(f"{tmp_path / 'model' / 'weights'}: cannot be written: File too large; ")


# --- names

def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path):
    for name in ("n" * 255, "ü" * 125):
        for text in ("old", "new"):
            write_folder(tmp_path / name, lambda folder, text=text: (folder / "a").write_text(text))
            write_file(tmp_path / f"{name[:-1]}f", lambda file, text=text: file.write_text(text))
        assert contents(tmp_path / name) == {"a": "new"}
    assert len(list(tmp_path.iterdir())) == 4, "nothing else is left"


def test_two_long_names_that_begin_alike_are_set_aside_apart(tmp_path):
    one, other = tmp_path / ("n" * 250 + "1"), tmp_path / ("n" * 250 + "2")
    one.mkdir()
    assert not settled(other).exists()
    for folder in (one, other):
        write_folder(folder, lambda folder: (folder / "a").write_text("a"))
    assert contents(one) == contents(other) == {"a": "a"}


def test_a_name_that_is_no_utf_8_is_read_from_json_as_it_was_written(tmp_path):
    names = {"path": os.fsdecode(b"caf\xe9"), "text": "Größe \\udce9"}
    write_json(tmp_path / "f.json", names)
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == names
