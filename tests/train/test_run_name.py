"""The folder that a run gets: whatever its data is called, it is new, and a name that cannot be is refused at once."""

import os

import pytest

from miniformer.kernel import UserError
from miniformer.train.run_folder import new_folder
from miniformer.train.run_name import free_folder
from miniformer.train.train_config import TrainConfig


@pytest.fixture
def config(tmp_path):
    def made(train_path="data.jsonl", **fields):
        return TrainConfig(**{"train_path": train_path, "work_dir": str(tmp_path / "runs"), **fields})

    return made


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?", "[!a]", "a{1,2}", "a.b", "(a|b)+", "a\\d", "-x", "$HOME", "a b", "é"])
def test_a_run_of_any_name_gets_the_next_number(config, name):
    names = [new_folder(config(f"{name}.jsonl")).name for _ in range(3)]
    assert names == [f"{name}-language-modeling-{number}" for number in (1, 2, 3)]


def test_numbers_are_those_of_the_same_name_alone(config, tmp_path):
    for taken in ("a-language-modeling-7", "ab-language-modeling-20", "a-language-modeling-x", "a-language-modeling-9b"):
        (tmp_path / "runs" / taken).mkdir(parents=True)
    (tmp_path / "runs" / "a-language-modeling-8").symlink_to("nowhere")  # taken, though nothing is there
    assert new_folder(config("a.jsonl")).name == "a-language-modeling-9"


def test_names_that_differ_in_case_alone_have_different_numbers(config):
    assert new_folder(config("A.jsonl")).name == "A-language-modeling-1"
    assert new_folder(config("a.jsonl")).name == "a-language-modeling-2"  # some systems take them for one


@pytest.mark.parametrize("name", ["x" * 249, "ü" * 124, "x" * 255])
def test_a_derived_name_is_cut_to_what_a_folder_may_be_called(config, name):
    names = [new_folder(config(f"{name}.jsonl")).name for _ in range(2)]
    assert all(name.endswith(f"-language-modeling-{number}") for number, name in enumerate(names, start=1))
    assert all(200 < len(os.fsencode(name)) <= 255 for name in names)


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "caf\n", "caf\x1b"])
def test_what_no_terminal_shows_is_not_in_a_derived_name(config, name):
    assert free_folder(config(f"{name}.jsonl")).name == "caf_-language-modeling-1"


@pytest.mark.parametrize(("fields", "told"), [
    ({"experiment_name": "e" * 256}, "experiment_name eeeeeeeeeeeeeeeeeeee...: cannot be written: File name too long: it has "
                                     "256 bytes; expected at most 255"),
    ({"experiment_name": "ü" * 128}, "it has 256 bytes; expected at most 255"),
    ({"work_dir": "w" * 300}, "work_dir wwwwwwwwwwwwwwwwwwww...: cannot be written: File name too long: it has 300 bytes"),
    ({"work_dir": "/".join(["w" * 100] * 50)}, r"its whole path has 5\d\d\d bytes; expected at most 3\d\d\d"),
])
def test_a_name_that_is_too_long_is_told_with_its_length_and_the_limit(config, fields, told):
    with pytest.raises(UserError, match=told):
        free_folder(config(**fields))


def test_the_longest_name_is_a_folder(config):
    assert new_folder(config(experiment_name="e" * 255)).is_dir()


def test_a_name_that_a_broken_link_has_is_taken(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to("nowhere")
    with pytest.raises(UserError, match="mine exists already"):
        new_folder(config(experiment_name="mine"))


def test_a_place_for_runs_that_is_none_is_told(config, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"work_dir .*file: a file; expected a folder"):
        free_folder(config(work_dir=tmp_path / "file"))
    with pytest.raises(UserError, match=r"work_dir .*file/runs: .*file is a file; expected a folder"):
        free_folder(config(work_dir=tmp_path / "file" / "runs"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever tests as root may write anywhere
    with pytest.raises(UserError, match=rf"cannot be written: {tmp_path} is closed to this user"):
        free_folder(config())
