"""Metadata of other packages, broken in any way, take no command down; what is broken is told in one line with its path."""

import json
import os
import sys
from contextlib import contextmanager

import pytest
from broken_metadata import KINDS
from depth import examples, thorough
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import miniformer.kernel.distributions as distributions

COMMAND = "import click\n@click.command()\ndef hello():\n    click.echo('hello from a plugin')\n"


@pytest.fixture
def beside(tmp_path_factory):
    """Inside, a plugin with a command is on the path, and beside it distributions of some kinds of broken metadata."""
    @contextmanager
    def on_the_path(*kinds):
        folder = tmp_path_factory.mktemp("site")
        plugin = folder / "acme-1.0.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text("[miniformer.command]\nhello = acme_greets:hello\n")
        (folder / "acme_greets.py").write_text(COMMAND)
        folders = [folder, *(folder / str(number) for number in range(len(kinds)))]
        for kind, own in zip(kinds, folders[1:], strict=True):
            own.mkdir()
            KINDS[kind][0](own)
        path = list(map(str, folders))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*path, *sys.path])
            patch.setenv("PYTHONPATH", os.pathsep.join(path))  # in the thorough run each command is a process
            patch.setattr("miniformer.kernel.registry._default", [])
            yield os.environ["PYTHONPATH"]

    return on_the_path


def check_commands(cli, *kinds):
    """Help, the list and a plugin's command work, and tell each distribution that is broken in one line with its path."""
    told = [KINDS[kind][1] for kind in kinds if KINDS[kind][1]]
    shown = cli("--help").stdout
    assert "hello" in shown
    assert "train " in shown
    ran = cli("hello")
    assert ran.stdout == "hello from a plugin\n"
    listed = [row for row in json.loads(cli("list-components", "--json").stdout) if row["kind"] == "distribution"]
    assert {row["state"] for row in listed} <= {"broken"}
    for texts in (shown.splitlines(), ran.stderr.splitlines(), [row["reason"] for row in listed]):
        assert all(any(end in text for text in texts) for end in told)
    assert len(ran.stderr.splitlines()) == len(listed) == len(told)


def test_there_are_forty_kinds():
    assert len(KINDS) >= 40


@settings(max_examples=examples(9), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=4, max_size=16, unique=True))
def test_every_command_works_beside_broken_metadata_and_tells_them(cli, beside, kinds):
    with beside(*kinds):
        check_commands(cli, *kinds)


@thorough
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_works_beside_each_kind_alone(cli, beside, kind):
    with beside(kind):
        check_commands(cli, kind)


@pytest.mark.parametrize("args", [("train", "--help"), pytest.param(("describe", "swiglu"), marks=thorough)])
@pytest.mark.parametrize("kind", ["entry points that are binary",
                                  pytest.param("an entry point without a value", marks=thorough)])
def test_torch_and_pydantic_can_be_imported_beside_broken_metadata(cli, beside, kind, args):
    """They ask for the entry points of all distributions, and would raise the error of this one."""
    with beside(kind) as path:
        assert "ptions" in cli(*args, PYTHONPATH=path).stdout


@thorough
def test_a_run_works_beside_broken_metadata(cli, beside, texts, tiny):
    with beside("entry points that are binary") as path:
        cli("train", "--train-path", str(texts), "--max-steps", "1", *tiny, PYTHONPATH=path)


def test_a_folder_that_cannot_be_searched_is_told(monkeypatch):
    find = distributions._find_all

    def fails(path, **options):
        if path == ["odd"]:
            raise RuntimeError("the finder of a third party")
        return find(path=path, **options)

    monkeypatch.setattr(distributions, "_find_all", fails)
    found = distributions.installed(["odd"])
    assert [one.problem for one in found] == [
        "odd: cannot be searched for distributions: RuntimeError: the finder of a third party"]


def test_what_is_no_text_on_the_path_is_passed_over(tmp_path):
    assert distributions.installed([None, b"bytes", tmp_path, 3, str(tmp_path)]) == []
