"""The command line: one file per command, each imported only when it runs.

Exit codes: 0 done, 1 a run that failed, 2 a mistake in the input, 128 + n stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import click

from miniformer import __version__

from .shared.output import guarded_streams
from .shared.own_commands import COMMANDS, module_of, summary
from .shared.plugin_commands import PluginCommands, broken_commands, dashed, load_command, why_no_command

LESS_MEMORY = {"generate": "a smaller --batch-size, --beams or --max-new-tokens needs less",
               "predict": "a smaller --batch-size needs less", "evaluate": "a smaller --batch-size needs less"}
"""What to lower where memory runs out in a command; `train` says so itself."""


class Commands(click.Group):
    """Commands that are found by name and imported when they are called; plugins add theirs by entry points."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(PluginCommands.of(context).names() - set(COMMANDS))]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        name = dashed(name)
        if name in COMMANDS:
            module = importlib.import_module(f"miniformer.cli.{module_of(name)}")
            command: click.Command = module.command
            return command
        entry = PluginCommands.of(context).named(name)
        return None if entry is None else load_command(entry)

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and dashed(args[0]) not in COMMANDS:
            for note in PluginCommands.of(context).notes:  # what is broken may be what was to be called
                click.echo(f"note: {note}", err=True)
        if args and self.get_command(context, args[0]) is None:
            names = self.list_commands(context)
            raise click.UsageError(f"there is no command {args[0]!r}{why_no_command(args[0], context, names)}\n"
                                   f"Commands: {', '.join(names)}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary(name) if name in COMMANDS else "(plugin)") for name in self.list_commands(context)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        if notes := PluginCommands.of(context).notes:
            with formatter.section("Installed packages that cannot be used"):
                formatter.write("".join(f"  {note}\n" for note in notes))


def _without_plugins(context: click.Context, option: click.Parameter, value: bool) -> bool:
    if value:
        os.environ["MINIFORMER_PLUGINS"] = "none"
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--no-plugins", is_flag=True, is_eager=True, callback=_without_plugins, expose_value=False,
              help="Use miniformer's own components only.")
@click.option("--strict-plugins", is_flag=True, help="Fail if any installed plugin is broken.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, message="miniformer %(version)s")
@click.pass_context
def cli(context: click.Context, strict_plugins: bool, debug: bool) -> None:
    """Build, compare and ship small transformers from parts that prove they work together.

    Start with `miniformer train`: it trains a small language model on Python's own library in a few minutes.
    """
    if strict_plugins:
        from miniformer.kernel.errors import UnavailableComponent
        from miniformer.kernel.registry import Availability, current_registry

        registry = current_registry()
        with redirect_stdout(sys.stderr):  # what plugins print is no part of the command's result
            registry.load_all()
        unusable = [e for e in registry.entries() if e.state in (Availability.BROKEN, Availability.INCOMPATIBLE)]
        if broken := [*unusable, *broken_commands(context, COMMANDS, load=True)]:
            raise UnavailableComponent("\n  ".join(["plugins are broken:", *(
                f"{e.kind} {e.name} of {e.provider}: {e.reason}" for e in broken)]))


def main(args: Sequence[str] | None = None, prefix: Sequence[str] = ()) -> None:
    """Run the command line and end the process with the right exit code."""
    with guarded_streams():
        _run([*prefix, *(sys.argv[1:] if args is None else args)])


def _run(argv: Sequence[str]) -> None:
    from miniformer.kernel.distributions import broken_left_out
    from miniformer.kernel.errors import MiniformerError
    from miniformer.kernel.out_of_memory import SMALLER, memory_errors

    try:
        less = next((LESS_MEMORY[word] for word in argv if word in LESS_MEMORY), SMALLER)
        with broken_left_out(), memory_errors(less):
            code = cli.main(args=list(argv), prog_name="miniformer", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.NoSuchOption as error:
        _unknown_option(error).show()
        sys.exit(2)
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
        sys.exit(1)


def _unknown_option(error: click.NoSuchOption) -> click.UsageError:
    """The error for an option that a command does not have, with those that may have been meant."""
    from miniformer.kernel.errors import did_you_mean

    options = [] if error.ctx is None else [name for parameter in error.ctx.command.get_params(error.ctx)
                                            for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")]
    hint = did_you_mean(error.option_name, [name for name in options if name.startswith("--")], settings=True)
    return click.UsageError(f"there is no option {error.option_name!r}{hint}", error.ctx)
