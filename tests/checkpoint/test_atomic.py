import json
import os

import pytest

from miniformer.checkpoint.atomic import settled, write_file, write_folder, write_json
from miniformer.kernel import RunError


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
