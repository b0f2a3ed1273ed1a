"""`miniformer generate RUN`: text that a model writes after prompts from flags, a file or standard input."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from miniformer.checkpoint.store import TOKENIZER, SavedModel
from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.cli.shared.output import ResultCommand, result_stream, say
from miniformer.cli.shared.text_input import SEED, checked_text, decoded, unescaped
from miniformer.decoding.defaults import DEFAULTS
from miniformer.kernel.errors import UserError
from miniformer.kernel.text_file import read_json

if TYPE_CHECKING:
    from miniformer.decoding.sampling import Sampling
    from miniformer.inference.constrained import Constraint
    from miniformer.inference.engine import Answer, Engine
    from miniformer.inference.load import Trained
    from miniformer.model.assembly import BlockAssembly

ONLY_WITH_BEAMS = ("length_penalty", "beam_groups", "n_best")
ONLY_FOR_DRAWING = ("temperature", "greedy", "top_k", "top_p", "min_p", "seed")


@click.command("generate", cls=ResultCommand, context_settings={"max_content_width": 120})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", "texts", multiple=True, help="Text to continue or to answer; may be empty, and may be repeated.  "
              "[default: standard input]")
@click.option("--prompts", "file", type=click.Path(path_type=Path),
              help="JSONL file with a field `prompt`; - for standard input.")
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=DEFAULTS.max_new_tokens, show_default=True,
              help="Longest text, in tokens.")
@click.option("--stop", multiple=True,
              help="A string that ends a text; \\n stands for a line end and \\t for a tab. May be repeated.")
@click.option("--temperature", type=click.FloatRange(min=0), default=DEFAULTS.temperature, show_default=True,
              help="Spread of the draws; 0 takes the likeliest token.")
@click.option("--greedy", is_flag=True, help="Take the likeliest token each time, as --temperature 0 does.")
@click.option("--top-k", type=click.IntRange(min=0), default=DEFAULTS.top_k, show_default=True,
              help="Draw among this many likeliest tokens; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=DEFAULTS.top_p, show_default=True,
              help="Draw among the likeliest tokens whose probabilities add up to this; 1: all.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=DEFAULTS.min_p,
              help="Draw among tokens at least this fraction as likely as the likeliest; 0: all.")
@click.option("--repetition-penalty", type=float, default=DEFAULTS.repetition_penalty,
              help="Makes tokens less likely that occur in prompt or text: divides their logits; 1: no penalty.")
@click.option("--presence-penalty", type=float, default=DEFAULTS.presence_penalty,
              help="Subtracted once from the logit of each token that was written.")
@click.option("--frequency-penalty", type=float, default=DEFAULTS.frequency_penalty,
              help="Subtracted from a token's logit for each time it was written.")
@click.option("--no-repeat-ngram", type=click.IntRange(min=0), default=DEFAULTS.no_repeat_ngram,
              help="Write no sequence of this many tokens twice; 0: any may be repeated.")
@click.option("--regex", metavar="PATTERN", help="Write a text that matches this regular expression as a whole.")
@click.option("--json-schema", type=click.Path(path_type=Path), help="Write JSON that fits the schema in this file.")
@click.option("--seed", type=SEED, help="Make the draws repeatable. Each prompt's text is as it would be alone.")
@click.option("--beams", type=click.IntRange(min=1),
              help="Search for the likeliest text with this many beams, instead of drawing.")
@click.option("--length-penalty", type=float, default=1.0, show_default=True,
              help="With --beams: a larger number favours longer texts.")
@click.option("--beam-groups", type=click.IntRange(min=1), default=1,
              help="With --beams: groups of beams, which avoid each other's tokens.")
@click.option("--n-best", type=click.IntRange(min=1), default=1, show_default=True,
              help="With --beams: texts to write for each prompt.")
@click.option("--draft", type=click.Path(path_type=Path), help="Run of a small model with the same tokenizer, which proposes "
              "tokens. Faster, and the distribution of texts is the same.")
@click.option("--truncate", is_flag=True, help="Leave out the start of a prompt that is too long.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts in a batch.")
@click.option("--stream/--no-stream", default=None,
              help="Show tokens as they are drawn.  [default: on a terminal, for one prompt]")
@click.option("--json", "as_json", is_flag=True,
              help="Write one JSON object in each line: text, tokens, log-probabilities, finish reason.")
@click.option("--compile", "compiled", is_flag=True,
              help="Compile the decoding step first; worth its time for many or long texts.")
@click.option("--no-state", is_flag=True, help="Compute all earlier tokens again at each step; slow, and the text is the same.")
@click.pass_context
def command(context: click.Context, /, run: Path, texts: tuple[str, ...], file: Path | None, greedy: bool, beams: int | None,
            length_penalty: float, beam_groups: int, n_best: int, stream: bool | None, as_json: bool, no_state: bool,
            compiled: bool, batch_size: int, stop: tuple[str, ...], seed: int | None, truncate: bool, max_new_tokens: int,
            regex: str | None, json_schema: Path | None, draft: Path | None, **drawing: Any) -> None:
    """Write text with a trained language model.

    Writes each prompt and its continuation; of an encoder-decoder, the answers alone. RUN is a run folder, or a folder with a
    saved model.
    """
    saved = read_saved(run)
    for option, values in (("--prompt", texts), ("--stop", stop), ("--regex", () if regex is None else (regex,))):
        for value in values:
            checked_text(option, value)
    asked = _prompts(texts, file)
    many = as_json or beams or file or len(texts) > 1
    if stream and many:
        raise click.UsageError("--stream writes the text of one prompt as it is drawn; leave out --json, --beams and --prompts")
    _refuse_contradictions(context)
    schema = _schema(json_schema) if json_schema else None
    saved_draft = read_saved(draft) if draft else None

    from miniformer.decoding.beam_search import Beams
    from miniformer.decoding.sampling import Sampling
    from miniformer.inference.engine import Engine

    if regex is not None or schema is not None:
        from miniformer.inference.constrained import library

        library()  # what is not installed is missed before the model is loaded
    trained = load_for_use(saved)
    drafting = None if saved_draft is None else _load_draft(saved_draft, trained, saved)
    engine = Engine(trained.model, trained.tokenizer, batch_size=batch_size, draft=drafting, encode=trained.prompt,
                    use_state=not no_state, compile=compiled)
    if compiled:
        click.echo("note: a step is compiled with the first prompt, which takes up to half a minute where this machine has not "
                   "compiled it before", err=True)
    if greedy:
        drawing["temperature"] = 0.0
    sampling = Sampling(**drawing, processors=_constraints(trained, regex, schema))
    prompts = _tried(asked, lambda prompt: engine.encode(prompt, max_new_tokens, truncate))
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "truncate": truncate, "stop": [unescaped(end) for end in stop]}
    if stream or (stream is None and not many and result_stream().isatty()):
        _stream(engine, next(iter(prompts)), sampling, seed=seed, **limits)
        return
    answers: Iterable[Sequence[Answer]]
    if beams:
        search = Beams(beams, length_penalty, groups=beam_groups)
        answers = engine.search(prompts, search, sampling, n_best=n_best, **limits)
    else:
        answers = ([answer] for answer in engine.generate(prompts, sampling, seed=seed, **limits))
    for of_prompt in answers:
        for answer in of_prompt[:n_best]:
            say(_json(answer) if as_json else ("" if trained.model.has_source else answer.prompt) + answer.text)


def _prompts(texts: Sequence[str], file: Path | None) -> Iterable[tuple[str, str]]:
    """The prompts from flags, a file or standard input, each after the place that errors name.

    A file that cannot be read is refused before a model is loaded.
    """
    if texts and file:
        raise click.UsageError("--prompt and --prompts: give one of them")
    if texts:
        return [(f"--prompt {number}" if len(texts) > 1 else "", text) for number, text in enumerate(texts, start=1)]
    if file:
        from pydantic import BaseModel

        from miniformer.data.jsonl import STDIN, check_file, read_records

        class PromptRecord(BaseModel):
            prompt: str

        if file != STDIN:
            check_file(file)
        return ((where, record.prompt) for where, record in read_records(file, PromptRecord))
    if sys.stdin.isatty():
        raise click.UsageError("there is no prompt; give --prompt TEXT, --prompts FILE, or a text on standard input")
    return [("", decoded("standard input", sys.stdin.buffer.read()).removesuffix("\n"))]


def _tried(asked: Iterable[tuple[str, str]], attempt: Callable[[str], object]) -> Iterator[str]:
    """The prompts. The error of an attempt to use one names its place."""
    for where, prompt in asked:
        try:
            attempt(prompt)
        except UserError as error:
            raise UserError(f"{where}: {error}" if where else str(error)) from None
        yield prompt


def _refuse_contradictions(context: click.Context) -> None:
    """Refuse options that exclude each other, and options that would have no effect beside the others."""
    values = context.params
    written = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if {"regex", "json_schema"} <= written:
        raise click.UsageError("--regex and --json-schema: give one of them")
    if {"draft", "beams"} <= written:
        raise click.UsageError("--draft helps drawing and greedy decoding; leave out --beams")
    if values["n_best"] > (values["beams"] or 1):
        raise click.UsageError(f"--n-best {values['n_best']}: give --beams {values['n_best']} or more")
    if {"greedy", "temperature"} <= written:
        raise click.UsageError("--greedy is temperature 0; leave out --temperature, or --greedy")
    names, reason = ((ONLY_FOR_DRAWING, "with --beams, which draw nothing") if values["beams"] else
                     (ONLY_WITH_BEAMS, "without --beams"))
    for name in names:
        if name in written:
            raise click.UsageError(f"--{name.replace('_', '-')} does nothing {reason}; leave it out")


def _load_draft(saved_draft: SavedModel, trained: Trained, saved: SavedModel) -> BlockAssembly:
    """The small model that proposes tokens, which must be those of the tokenizer of `trained`."""
    draft = load_for_use(saved_draft)
    if draft.tokenizer.to_json() != trained.tokenizer.to_json():
        raise UserError(f"--draft {saved_draft.folder}: it has a different tokenizer; train it with --tokenizer "
                        + shlex.quote(str(saved.folder / TOKENIZER)))
    return draft.model


def _constraints(trained: Trained, regex: str | None, schema: dict[str, Any] | None) -> tuple[Constraint, ...]:
    """The form that texts must have, as processors of logits."""
    if regex is None and schema is None:
        return ()

    from miniformer.inference.constrained import Constraint

    if schema is not None:
        return (Constraint.json_schema(trained.tokenizer, schema, trained.eos_id),)
    return (Constraint.regex(trained.tokenizer, regex or "", trained.eos_id),)


def _schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file."""
    schema = read_json(path)
    if not isinstance(schema, dict):
        raise UserError(f"{path}: expected a JSON object, a schema; found {type(schema).__name__}")
    return schema


def _stream(engine: Engine, prompt: str, sampling: Sampling, **limits: Any) -> None:
    """Write the text piece by piece, as it is drawn."""
    pieces: Iterator[str] = engine.stream(prompt, sampling, **limits)
    if not engine.model.has_source:
        say(prompt, nl=False)
    for piece in pieces:
        say(piece, nl=False)
    say()


def _json(answer: Answer) -> str:
    fields = asdict(answer)
    if answer.score is None:
        del fields["score"]
    return json.dumps(fields, ensure_ascii=False)
