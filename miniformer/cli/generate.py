"""`miniformer generate RUN --prompt TEXT`."""

from __future__ import annotations

import click


@click.command("generate")
@click.argument("run", type=click.Path())
@click.option("--prompt", required=True, help="Text to go on from, or to answer; may be empty.")
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--greedy", is_flag=True, help="The likeliest token each time: temperature 0.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Keep so many tokens; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="Keep this probability.")
@click.option("--seed", type=int, help="Make the draws repeatable.")
@click.option("--no-state", is_flag=True, help="Compute everything again at each step; slow, and the same text.")
def command(run: str, prompt: str, max_new_tokens: int, temperature: float, greedy: bool, top_k: int, top_p: float,
            seed: int | None, no_state: bool) -> None:
    """Write the text that a trained language model goes on with, after the prompt; of an encoder-decoder, its answer alone.

    RUN is a run folder, or a folder with a saved model.
    """
    from pathlib import Path

    from miniformer.checkpoint.store import read_model

    read_model(Path(run))  # before torch is imported, so that a wrong folder is told at once

    import torch

    from miniformer.inference.generation import stream
    from miniformer.inference.load import load

    trained = load(run)
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    ids = trained.task.prompt(prompt, trained.tokenizer)
    tokens = stream(trained.model, torch.tensor(ids), max_new_tokens, temperature=0.0 if greedy else temperature,
                    top_k=top_k, top_p=top_p, seed=seed, eos_id=trained.tokenizer.eos_id, use_state=not no_state)
    if not trained.model.has_source:
        click.echo(prompt, nl=False)
    told = ""
    new: list[int] = []
    for token in tokens:  # text is written as soon as no later token can change it
        new.append(token)
        text = trained.tokenizer.decode(new)
        if not text.endswith("�"):
            click.echo(text[len(told):], nl=False)
            told = text
    click.echo(trained.tokenizer.decode(new)[len(told):])
