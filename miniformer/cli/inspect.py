"""`miniformer inspect SPEC|RUN`: what a model is made of and what it costs, before a tensor exists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.checkpoint.store import BEST, CONFIG
from miniformer.kernel.errors import SpecError, UserError

if TYPE_CHECKING:
    from miniformer.config.model_config import TransformerConfig

ONE_STACK = "transformer"
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
TRAINING_BYTES = 16
"""Bytes of a parameter in training: itself, its gradient and the two means of Adam, in fp32."""


@click.command("inspect")
@click.argument("spec", type=click.Path())
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a sequence.  [default: max_seq_len]")
@click.option("--memory", metavar="SIZE", help="Does it fit so much, such as 8GB?  [default: this machine's]")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(spec: str, batch_size: int, length: int | None, memory: str | None, as_json: bool) -> None:
    """Show what a model is made of and what it costs.

    SPEC is a run folder, a run.json, or a YAML or JSON file with fields of TransformerConfig or a run's config.
    """
    data = _model_of(Path(spec))
    room = _machine() if memory is None else _size(memory)

    from miniformer.config.model_config import TransformerConfig
    from miniformer.model import counting

    config = TransformerConfig.model_validate(data)
    length = length or config.max_seq_len
    parameters = counting.parameter_count(config)
    try:
        flops, activations = counting.flops_per_token(config, length), counting.activation_bytes(config, batch_size, length)
        unknown = ""
    except SpecError as error:
        flops, activations, unknown = None, 0, str(error)
    state = counting.state_bytes(config, batch_size, length) if counting.has_state(config) else None
    facts = {"parameters": parameters, "flops_per_token": flops, "weight_bytes": 4 * parameters, "state_bytes": state,
             "activation_bytes": None if unknown else activations, "inference_bytes": 4 * parameters + (state or 0),
             "training_bytes": TRAINING_BYTES * parameters + activations, "unknown": unknown}
    if as_json:
        click.echo(json.dumps({**facts, "batch_size": batch_size, "length": length, "memory_bytes": room}, indent=2))
    else:
        _print(config, facts, batch_size, length, room)


def _print(config: TransformerConfig, facts: Mapping[str, Any], batch_size: int, length: int, room: int) -> None:
    from miniformer.model.counting import parts

    rows = [(part.name, part.made_of, f"{part.parameters:,}") for part in parts(config)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, made_of, count in rows:
        click.echo(f"{name.ljust(widths[0])}  {made_of.ljust(widths[1])}  {count.rjust(widths[2])}")
    click.echo(f"\nparameters  {facts['parameters']:,}: {_gib(facts['weight_bytes'])} in fp32, "
               f"{_gib(facts['weight_bytes'] // 2)} in bf16")
    if facts["unknown"]:
        click.echo(f"forward     {facts['unknown']}; activations are left out below")
    else:
        click.echo(f"forward     {facts['flops_per_token'] / 1e6:,.1f} MFLOP per token, in rows of {length}")
    state = facts["state_bytes"]
    kept = "no state: it is not causal, or a part keeps none" if state is None else f"{_gib(state)} of state"
    click.echo(f"decoding    {kept}; {batch_size} x {length} tokens, fp32")
    for name, size in (("inference", facts["inference_bytes"]), ("training", facts["training_bytes"])):
        click.echo(f"{name.ljust(11)} {_gib(size)} of {_gib(room)}: {'fits' if size <= room else 'does not fit'}")


def _model_of(path: Path) -> dict[str, Any]:
    """The fields of the model that a path says."""
    import yaml

    if path.is_dir():
        found = [place for place in (path / "run.json", path / BEST / CONFIG, path / CONFIG) if place.is_file()]
        if not found:
            raise UserError(f"{path}: no run and no saved model here; expected run.json or {CONFIG}")
        path = found[0]
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or ' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: expected a mapping of fields; found {type(data).__name__}")
    trained = data.get("train")
    assembly = data.get("assembly", trained.get("model") if isinstance(trained, Mapping) else data.get("model"))
    if assembly not in (None, ONE_STACK) and not isinstance(assembly, Mapping):
        raise UserError(f"{path}: model {assembly!r}: only models of one stack ({ONE_STACK}) are counted")
    inner = data.get("model_config", data.get("model"))
    return dict(inner if isinstance(inner, Mapping) else data)


def _size(text: str) -> int:
    """Bytes in a text such as `8GB`; units are powers of 1024."""
    found = re.fullmatch(r"\s*([0-9]+(?:[.][0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if found is None:
        raise UserError(f"--memory {text}: expected a size such as 8GB or 512MB")
    return int(float(found[1]) * UNITS[found[2]])


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.2f} MiB"
