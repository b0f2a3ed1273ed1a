"""The command line as a whole: help, unknown commands, exit codes, plugins' commands and switches."""

import importlib
import inspect
from pathlib import Path

import pytest

import miniformer.cli
from miniformer.cli.shared.own_commands import COMMANDS, module_of, summary

PLUGIN_COMMAND = """
import click
@click.command()
def command():
    \"\"\"Say hello.\"\"\"
    click.echo("hello from a plugin")
"""


@pytest.fixture
def plugin(tmp_path):
    """A distribution with a command, an available ffn and one that cannot be imported."""
    folder = tmp_path / "site"
    info = folder / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miniformer.command]\nhello = acme_hello:command\nsay_bye = acme_hello:command\n"
                                           "sick = acme_sick:command\nodd = acme_hello:click\ntrain = acme_hello:command\n"
                                           "[miniformer.ffn]\nsick-ffn = acme_sick:Thing\n")
    (folder / "acme_hello.py").write_text(PLUGIN_COMMAND)
    (folder / "acme_sick.py").write_text("raise RuntimeError('out of order')")
    return str(folder)


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["train", "--help"], ["generate", "--help"], ["list-components"],
                                  ["list_components"], ["--version"]])
def test_help_and_listing_import_no_torch(cli, args):
    done = cli(*args, PYTHONPROFILEIMPORTTIME="1")
    assert "click" in done.stderr
    assert " torch\n" not in done.stderr
    assert done.stdout


def test_help_lists_every_command_with_the_first_line_of_its_docstring(cli):
    files = {path.stem for path in Path(miniformer.cli.__file__).parent.glob("*.py")} - {"__init__"}
    assert {module_of(name) for name in COMMANDS} == files
    shown = " ".join(cli("--help").stdout.split())
    for name in COMMANDS:
        command = importlib.import_module(f"miniformer.cli.{module_of(name)}").command
        first_line = inspect.cleandoc(command.callback.__doc__).partition("\n")[0]
        assert summary(name) == first_line
        assert first_line.endswith(".")
        assert f"{name} {first_line}" in shown
        assert command.name == name


def test_an_unknown_command_names_the_nearest(cli):
    assert "there is no command 'trian'; did you mean 'train'?" in cli("trian", code=2).stderr


def test_a_plugin_adds_a_command(cli, plugin):
    assert cli("hello", PYTHONPATH=plugin).stdout == "hello from a plugin\n"
    assert cli("say-bye", PYTHONPATH=plugin).stdout == cli("say_bye", PYTHONPATH=plugin).stdout == "hello from a plugin\n"
    assert {"hello", "say-bye"} <= set(cli("--help", PYTHONPATH=plugin).stdout.split())


def test_a_broken_plugin_command_is_told_and_harms_no_other(cli, plugin):
    assert cli("sick", PYTHONPATH=plugin, code=2).stderr == \
        "error: command 'sick' of acme 1.0 (acme_sick:command) is broken: import: RuntimeError: out of order\n"
    assert "command 'odd' of acme 1.0 (acme_hello:click) is broken: conformance: a command is a click.Command; this is " in \
        cli("odd", PYTHONPATH=plugin, code=2).stderr
    assert cli("describe", "swiglu", PYTHONPATH=plugin).stdout


def test_no_plugins_leaves_third_parties_out(cli, plugin):
    assert "blocked" in cli("--no-plugins", "list-components", "ffn", PYTHONPATH=plugin).stdout
    for args, environment in ((("--no-plugins", "hello"), {}), (("hello",), {"MINIFORMER_PLUGINS": "none"}),
                              (("hello",), {"MINIFORMER_PLUGINS": "others,than-this"})):
        assert "there is no command 'hello'" in cli(*args, PYTHONPATH=plugin, code=2, **environment).stderr
    assert cli("hello", PYTHONPATH=plugin, MINIFORMER_PLUGINS="acme").stdout


def test_strict_plugins_makes_a_broken_one_fatal(cli, plugin):
    told = cli("--strict-plugins", "list-components", PYTHONPATH=plugin, code=2).stderr
    assert "ffn sick-ffn of acme 1.0: import: RuntimeError: out of order" in told
    assert "command sick of acme 1.0: import: RuntimeError: out of order" in told
    assert "command train of acme 1.0: metadata: 'train' is a command of miniformer; choose another name" in told
    cli("--strict-plugins", "list-components")


def test_a_mistake_shows_a_traceback_only_with_debug(cli):
    assert "Traceback" not in cli("train", "--attention", "rope-mah", code=2).stderr
    assert "Traceback" in cli("--debug", "train", "--attention", "rope-mah", code=1).stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to "
                                                               "allocate 34359738368 bytes.")])
@pytest.mark.parametrize(("args", "advice"), [(("inspect", "x"), "a smaller model, batch or length needs less"),
                                              (("generate", "x"), "a smaller --batch-size, --beams or --max-new-tokens")])
def test_memory_that_runs_out_in_a_command_is_told_in_one_line(cli, monkeypatch, error, args, advice):
    def run_out(*_):
        raise error

    for name in ("inspect.read_spec", "generate.read_saved"):
        monkeypatch.setattr(f"miniformer.cli.{name}", run_out)
    said = cli(*args, code=2).stderr
    assert said.startswith("error: memory ran out") and advice in said and said.count("\n") == 1
    with pytest.raises(type(error)):
        raise error
