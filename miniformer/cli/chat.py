"""`miniformer chat RUN`: a conversation in which the model answers each line."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click

from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.text_input import SEED, checked_text, read_line, unescaped
from miniformer.decoding.defaults import DEFAULTS


@click.command("chat", cls=ResultCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=DEFAULTS.max_new_tokens, show_default=True,
              help="Longest answer, in tokens.")
@click.option("--stop", default="\n", show_default="line end", help="A string that ends an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=DEFAULTS.temperature, show_default=True,
              help="Spread of the draws; 0 takes the likeliest token.")
@click.option("--top-k", type=click.IntRange(min=0), default=DEFAULTS.top_k, show_default=True,
              help="Draw among this many likeliest tokens; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=DEFAULTS.top_p, show_default=True,
              help="Draw among the likeliest tokens whose probabilities add up to this; 1: all.")
@click.option("--seed", type=SEED, help="Make the draws repeatable.")
def command(run: Path, max_new_tokens: int, stop: str, temperature: float, top_k: int, top_p: float, seed: int | None) -> None:
    """Talk to a trained model line by line.

    A decoder continues the whole conversation; an encoder-decoder answers each line by itself. Ctrl-C cuts an answer short,
    Ctrl-D ends. RUN is a run folder, or a folder with a saved model.
    """
    saved = read_saved(run)
    ends = [unescaped(checked_text("--stop", stop))]

    from miniformer.decoding.sampling import Sampling
    from miniformer.inference.engine import Engine

    trained = load_for_use(saved)
    engine = Engine(trained.model, trained.tokenizer, encode=trained.prompt)
    sampling, history = Sampling(temperature, top_k, top_p), ""
    for number in itertools.count(1):
        if sys.stdin.isatty():
            say("> ", nl=False)
        if not (line := read_line(sys.stdin.buffer, number)):
            return
        history = line.rstrip("\n") if trained.model.has_source else f"{history}{line.rstrip()}\n"
        stream = engine.stream(history, sampling, max_new_tokens=max_new_tokens, stop=ends, seed=seed, truncate=True)
        try:
            for piece in stream:
                say(piece, nl=False)
                history += piece
        except KeyboardInterrupt:
            click.echo(" (cut short)", nl=False, err=True)
        say()
        history += "\n"
