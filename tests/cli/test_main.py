"""The command line as a whole: help, unknown commands, exit codes, plugins' commands and switches."""

import importlib
import inspect
import sys
from pathlib import Path

import click
import pytest

import miniformer.cli
from miniformer.cli.shared.own_commands import COMMANDS, module_of, summary
from miniformer.kernel import discovery

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


@pytest.mark.parametrize("target", ["acme_hello: command", "acme_hello:command [extra]", "acme_hello : command"])
def test_a_command_may_be_declared_in_every_spelling_of_an_entry_point(cli, plugin, target, monkeypatch):
    (Path(plugin) / "acme-1.0.dist-info" / "entry_points.txt").write_text(f"[miniformer.command]\nhello = {target}\n")
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", plugin)
    assert cli("hello").stdout == "hello from a plugin\n"


def test_a_command_for_another_version_is_refused_before_it_is_imported(cli, plugin, monkeypatch):
    with (Path(plugin) / "acme-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Requires-Dist: miniformer>=99\n")
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", plugin)
    assert "command 'sick' of acme 1.0 (acme_sick:command) is incompatible: it needs miniformer>=99, and this is " in \
        cli("sick", code=2).stderr


def test_stale_metadata_earlier_on_the_path_hide_no_command(cli, plugin, tmp_path, monkeypatch):
    stale = tmp_path / "stale" / "acme-0.9.dist-info"
    stale.mkdir(parents=True)
    (stale / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 0.9\n")
    (stale / "entry_points.txt").write_text("[miniformer.command]\nhullo = acme_gone:command\n")
    monkeypatch.setattr("sys.path", [str(stale.parent), plugin, *sys.path])
    monkeypatch.setenv("PYTHONPATH", f"{stale.parent}:{plugin}")
    done = cli("hello")
    assert done.stdout == "hello from a plugin\n"
    assert done.stderr.startswith(f"note: {stale}: other metadata of acme, in {plugin}/acme-1.0.dist-info, describe the code ")
    assert "hullo" not in cli("--help").stdout.split()


@pytest.mark.parametrize(("command", "package"), [("export-hf", "miniformer-hf"), ("import_hf", "miniformer-hf"),
                                                  ("lm-eval", "miniformer-lm-eval")])
def test_a_command_of_a_first_party_plugin_that_is_not_installed_says_what_to_install(cli, command, package, monkeypatch):
    def without_plugins(path=None):
        return [one for one in installed(path) if one.name == "miniformer"]

    installed = discovery.installed
    monkeypatch.setattr(discovery, "installed", without_plugins)
    with pytest.raises(click.UsageError, match=f"no command '{command}'; it is one of {package}, which is not installed; "
                                               f"to get it: pip install {package}\n"):
        miniformer.cli.cli.main([command, "run"], standalone_mode=False)
    with pytest.raises(click.UsageError, match=r"did you mean 'export-hf' \(pip install miniformer-hf\)"):
        miniformer.cli.cli.main(["exporthf"], standalone_mode=False)


def test_no_plugins_leaves_third_parties_out(cli, plugin):
    assert "blocked" in cli("--no-plugins", "list-components", "ffn", PYTHONPATH=plugin).stdout
    for args, environment in ((("--no-plugins", "hello"), {}), (("hello",), {"MINIFORMER_PLUGINS": "none"}),
                              (("hello",), {"MINIFORMER_PLUGINS": "others,than-this"})):
        told = cli(*args, PYTHONPATH=plugin, code=2, **environment).stderr
        assert "there is no command 'hello'; acme 1.0 has it, and is blocked: third-party plugins are restricted" in told
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
def test_memory_that_runs_out_in_a_command_is_told_in_one_line(cli_here, monkeypatch, error, args, advice):
    def run_out(*_):
        raise error

    for name in ("inspect.read_spec", "generate.read_saved"):
        monkeypatch.setattr(f"miniformer.cli.{name}", run_out)
    said = cli_here(*args, code=2).stderr
    assert said.startswith("error: memory ran out") and advice in said and said.count("\n") == 1
    with pytest.raises(type(error)):
        raise error
