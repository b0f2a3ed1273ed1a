"""`miniformer generate RUN`: what a model writes after prompts, from flags, a file or standard input."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from miniformer.checkpoint.store import TOKENIZER
from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.cli.shared.text_input import SEED, checked_text, decoded, unescaped
from miniformer.decoding.defaults import DEFAULTS
from miniformer.kernel.errors import UserError

if TYPE_CHECKING:
    from miniformer.decoding.sampling import Sampling
    from miniformer.inference.engine import Answer, Engine

OF_BEAMS = ("length_penalty", "beam_groups", "n_best")
OF_DRAWING = ("temperature", "greedy", "top_k", "top_p", "min_p", "seed")


@click.command("generate", context_settings={"max_content_width": 120})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", "texts", multiple=True, help="Text to go on from, or to answer; may be empty, and repeated.  "
              "[default: standard input]")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="JSONL file with a field `prompt`; - for stdin.")
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=DEFAULTS.max_new_tokens, show_default=True)
@click.option("--stop", multiple=True, help="A string that ends a text; \\n and \\t are line end and tab. May be repeated.")
@click.option("--temperature", type=click.FloatRange(min=0), default=DEFAULTS.temperature, show_default=True,
              help="0 is greedy.")
@click.option("--greedy", is_flag=True, help="The likeliest token each time: temperature 0.")
@click.option("--top-k", type=click.IntRange(min=0), default=DEFAULTS.top_k, show_default=True,
              help="Keep so many tokens; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=DEFAULTS.top_p, show_default=True,
              help="Keep the likeliest tokens whose probabilities add up to this; 1: all.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=DEFAULTS.min_p,
              help="Keep tokens at least this fraction as likely as the likeliest; 0: all.")
@click.option("--repetition-penalty", type=float, default=DEFAULTS.repetition_penalty,
              help="Divides logits of tokens that were seen; 1: none.")
@click.option("--presence-penalty", type=float, default=DEFAULTS.presence_penalty,
              help="Taken once off the logit of each token already written.")
@click.option("--frequency-penalty", type=float, default=DEFAULTS.frequency_penalty,
              help="Taken off a token's logit for each time it was written.")
@click.option("--no-repeat-ngram", type=click.IntRange(min=0), default=DEFAULTS.no_repeat_ngram,
              help="Write no run of so many tokens twice; 0: any.")
@click.option("--regex", metavar="PATTERN", help="Write what matches this regular expression as a whole.")
@click.option("--json-schema", type=click.Path(path_type=Path), help="Write JSON of the schema in this file.")
@click.option("--seed", type=SEED, help="Make the draws repeatable; a prompt is answered as it would be alone.")
@click.option("--beams", type=click.IntRange(min=1), help="Search for the likeliest text with so many beams; nothing is drawn.")
@click.option("--length-penalty", type=float, default=1.0, show_default=True, help="Beams: more favours longer texts.")
@click.option("--beam-groups", type=click.IntRange(min=1), default=1, help="Beams: groups that keep from each other's tokens.")
@click.option("--n-best", type=click.IntRange(min=1), default=1, show_default=True, help="Beams: so many texts for a prompt.")
@click.option("--draft", type=click.Path(path_type=Path), help="Run of a small model with the same tokenizer that proposes "
              "tokens; faster, and the same distribution.")
@click.option("--truncate", is_flag=True, help="Leave out the start of a prompt that is too long.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts at a time.")
@click.option("--stream/--no-stream", default=None, help="Write as the model does.  [default: on a terminal, for one prompt]")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: text, tokens, log-probabilities, finish reason.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the step of decoding first: for many or long texts.")
@click.option("--no-state", is_flag=True, help="Compute everything again at each step; slow, and the same text.")
@click.pass_context
def command(context: click.Context, /, run: Path, texts: tuple[str, ...], file: Path | None, greedy: bool, beams: int | None,
            length_penalty: float, beam_groups: int, n_best: int, stream: bool | None, as_json: bool, no_state: bool,
            compiled: bool, batch_size: int, stop: tuple[str, ...], seed: int | None, truncate: bool, max_new_tokens: int,
            regex: str | None, json_schema: Path | None, draft: Path | None, **chosen: Any) -> None:
    """Write the text that a trained language model goes on with, after the prompt; of an encoder-decoder, its answer alone.

    RUN is a run folder, or a folder with a saved model.
    """
    saved = read_saved(run)
    for option, given in (("--prompt", texts), ("--stop", stop), ("--regex", () if regex is None else (regex,))):
        for text in given:
            checked_text(option, text)
    prompts = _prompts(texts, file)
    if stream and (as_json or beams or file or len(texts) > 1):
        raise click.UsageError("--stream writes the text of one prompt as it is drawn; leave out --json, --beams and --prompts")
    if regex is not None and json_schema:
        raise click.UsageError("--regex and --json-schema: give one of them")
    if draft and beams:
        raise click.UsageError("--draft helps drawing and greedy decoding; leave out --beams")
    schema = _schema(json_schema) if json_schema else None
    saved_draft = read_saved(draft) if draft else None
    if n_best > (beams or 1):
        raise click.UsageError(f"--n-best {n_best}: give --beams {n_best} or more")
    _no_effect(context, beams)

    from miniformer.decoding.beam_search import Beams
    from miniformer.decoding.sampling import Sampling
    from miniformer.inference.engine import Engine

    trained = load_for_use(saved)
    small = load_for_use(saved_draft) if saved_draft else None
    if small and small.tokenizer.to_json() != trained.tokenizer.to_json():
        raise UserError(f"--draft {draft}: its tokenizer is another; train it with --tokenizer "
                        + shlex.quote(str(saved.folder / TOKENIZER)))
    engine = Engine(trained.model, trained.tokenizer, batch_size=batch_size, draft=small.model if small else None,
                    encode=trained.prompt, use_state=not no_state, compile=compiled)
    if regex is not None or schema is not None:
        from miniformer.inference.constrained import Constraint

        chosen["processors"] = (Constraint.json_schema(trained.tokenizer, schema) if schema is not None else
                                Constraint.regex(trained.tokenizer, regex or ""),)
    sampling = Sampling(**{**chosen, "temperature": 0.0 if greedy else chosen["temperature"]})
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "truncate": truncate, "stop": [unescaped(one) for one in stop]}
    if stream or (stream is None and not (as_json or beams or file or len(texts) > 1) and sys.stdout.isatty()):
        _stream(engine, next(iter(prompts)), sampling, seed=seed, **limits)
        return
    answers: Iterable[Sequence[Answer]]
    if beams:
        answers = engine.search(prompts, Beams(beams, length_penalty, groups=beam_groups), sampling, **limits)
    else:
        answers = ([answer] for answer in engine.generate(prompts, sampling, seed=seed, **limits))
    for found in answers:
        for answer in found[:n_best]:
            click.echo(_json(answer) if as_json else ("" if trained.model.has_source else answer.prompt) + answer.text)


def _prompts(texts: Sequence[str], file: Path | None) -> Iterable[str]:
    """The prompts that were given, one way or another; faults of a file are told before a model is loaded."""
    if texts and file:
        raise click.UsageError("--prompt and --prompts: give one of them")
    if texts:
        return texts
    if file:
        from pydantic import BaseModel

        from miniformer.data.jsonl import STDIN, check_file, read_records

        class PromptRecord(BaseModel):
            prompt: str

        if file != STDIN:
            check_file(file)
        return (record.prompt for _, record in read_records(file, PromptRecord))
    if sys.stdin.isatty():
        raise click.UsageError("nothing to go on from; give --prompt TEXT, --prompts FILE, or a text on standard input")
    return [decoded("standard input", sys.stdin.buffer.read()).removesuffix("\n")]


def _no_effect(context: click.Context, beams: int | None) -> None:
    """Refuse options that were given and would do nothing beside others."""
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if {"greedy", "temperature"} <= given:
        raise click.UsageError("--greedy is temperature 0; leave out --temperature, or --greedy")
    names, why = (OF_DRAWING, "with --beams, which draw nothing") if beams else (OF_BEAMS, "without --beams")
    for name in names:
        if name in given:
            raise click.UsageError(f"--{name.replace('_', '-')} does nothing {why}; leave it out")


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"{path}: expected a JSON object, a schema; found {type(schema).__name__}")
    return schema


def _stream(engine: Engine, prompt: str, sampling: Sampling, **limits: Any) -> None:
    pieces: Iterator[str] = engine.stream(prompt, sampling, **limits)
    if not engine.model.has_source:
        click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def _json(answer: Answer) -> str:
    fields = asdict(answer)
    if answer.score is None:
        del fields["score"]
    return json.dumps(fields, ensure_ascii=False)
