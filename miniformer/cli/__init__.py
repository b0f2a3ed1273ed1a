"""The command line: one file per command, each imported only when it runs.

Exit codes: 0 done, 1 a run that failed, 2 a mistake in the input, 128 + n stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from miniformer.kernel.registry import Entry

COMMANDS = {
    "train": "Train a model and leave a run folder.",
    "predict": "Add a trained model's predictions to the records of a file.",
    "evaluate": "Measure a trained model on the records of a file.",
    "generate": "Write text with a trained model.",
    "chat": "Talk to a trained model line by line.",
    "inspect": "Show what a model is made of and what it costs.",
    "bench": "Measure speed and memory of models, side by side.",
    "list-components": "List components: kind, name, provider, state.",
    "describe": "Show what a component is and which options it takes.",
    "check": "Check that a component keeps the promises of its kind.",
}
PLUGIN_COMMANDS = "miniformer.command"


class Commands(click.Group):
    """Commands found by name and imported when called; plugins add theirs in the group `miniformer.command`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS, *sorted({_dashed(point.name) for point in _plugin_commands()} - set(COMMANDS))]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        name = _dashed(name)
        if name in COMMANDS:
            module = importlib.import_module(f"miniformer.cli.{name.replace('-', '_')}")
            command: click.Command = module.command
            return command
        for point in _plugin_commands():
            if _dashed(point.name) == name:
                return _loaded(point)
        return None

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and self.get_command(context, args[0]) is None:
            from miniformer.kernel.errors import did_you_mean

            names = self.list_commands(context)
            raise click.UsageError(f"there is no command {args[0]!r}{did_you_mean(args[0], names)}\n"
                                   f"Commands: {', '.join(names)}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS.get(name, "(plugin)")) for name in self.list_commands(context)])


def _plugin_commands() -> list[importlib.metadata.EntryPoint]:
    """Those of the plugins that are welcome."""
    from miniformer.kernel.registry import allowed_distributions, normalise_distribution

    names = allowed_distributions()
    return [point for point in importlib.metadata.entry_points(group=PLUGIN_COMMANDS)
            if names is None or (point.dist is not None and normalise_distribution(point.dist.name) in names)]


def broken_commands(load: bool) -> list[Entry]:
    """The commands of plugins that cannot be called, and why; those that have to be imported to tell only with `load`."""
    from miniformer.kernel.errors import UnavailableComponent
    from miniformer.kernel.registry import OURS, Availability

    owners, broken = dict.fromkeys(COMMANDS, OURS), []
    for point in _plugin_commands():
        entry, reason = _entry(point), ""
        owner = owners.setdefault(entry.name, entry.provider)
        if owner != entry.provider:
            reason = f"metadata: {entry.name!r} is a command of {owner}; choose another name"
        elif load:
            try:
                _loaded(point)
            except UnavailableComponent as error:
                reason = str(error).partition(" is broken: ")[2]
        if reason:
            broken.append(replace(entry, state=Availability.BROKEN, reason=reason))
    return broken


def _entry(point: importlib.metadata.EntryPoint) -> Entry:
    from miniformer.kernel.registry import COMMAND, Entry, normalise_distribution

    name, version = (normalise_distribution(point.dist.name), point.dist.version) if point.dist else ("unknown", "?")
    return Entry(COMMAND, _dashed(point.name), point.value, name, version)


def _loaded(point: importlib.metadata.EntryPoint) -> click.Command:
    """The command of a plugin.

    Raises:
        UnavailableComponent: it cannot be imported, or is none.
    """
    from miniformer.kernel.errors import UnavailableComponent

    try:
        loaded = point.load()
        if isinstance(loaded, click.Command):
            return loaded
        problem = f"conformance: a command is a click.Command; this is {type(loaded).__name__} {loaded!r:.80}"
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        problem = f"import: {type(error).__name__}: {error}"
    entry = _entry(point)
    raise UnavailableComponent(f"command {entry.name!r} of {entry.provider} ({point.value}) is broken: {problem}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _without_plugins(context: click.Context, option: click.Parameter, value: bool) -> bool:
    if value:
        os.environ["MINIFORMER_PLUGINS"] = "none"
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--no-plugins", is_flag=True, is_eager=True, callback=_without_plugins, expose_value=False,
              help="Use miniformer's own components only.")
@click.option("--strict-plugins", is_flag=True, help="Fail if any installed plugin is broken.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="miniformer", message="%(package)s %(version)s")
def cli(strict_plugins: bool, debug: bool) -> None:
    """Build, compare and ship small transformers from parts that prove they work together.

    Start with `miniformer train`: it trains a small language model on Python's own library in a few minutes.
    """
    if strict_plugins:
        from miniformer.kernel.errors import UnavailableComponent
        from miniformer.kernel.registry import Availability, current_registry

        registry = current_registry()
        registry.load_all()
        unusable = [e for e in registry.entries() if e.state in (Availability.BROKEN, Availability.INCOMPATIBLE)]
        if broken := [*unusable, *broken_commands(load=True)]:
            raise UnavailableComponent("\n  ".join(["plugins are broken:", *(
                f"{e.kind} {e.name} of {e.provider}: {e.reason}" for e in broken)]))


def main(args: Sequence[str] | None = None, prefix: Sequence[str] = ()) -> None:
    """Run the command line and end the process with the right exit code."""
    from miniformer.kernel.errors import MiniformerError

    argv = [*prefix, *(sys.argv[1:] if args is None else args)]
    try:
        code = cli.main(args=argv, prog_name="miniformer", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if isinstance(error, click.UsageError) else 2)
    except MiniformerError as error:
        if "--debug" in argv:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
