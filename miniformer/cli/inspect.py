"""`miniformer inspect SPEC|RUN`: the parts of a model and what it costs, without building it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniformer.cli.shared.output import ResultCommand, say
from miniformer.cli.shared.tables import labelled, line_width, table
from miniformer.config.memory import gib, machine_room
from miniformer.kernel.errors import SpecError, StateError, UserError
from miniformer.train.spec_file import model_of, read_spec

if TYPE_CHECKING:
    from miniformer.config.counting import Skeleton

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
UNFINISHED = {"running": "not finished: still at work, or killed, with its last note"}
"""What is said of a run whose own word would mislead."""
TRAINING_BYTES = 16
"""Bytes of a parameter in training: the parameter, its gradient and the two means of Adam, in fp32."""


@click.command("inspect", cls=ResultCommand)
@click.argument("spec", type=click.Path())
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences in a batch.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a sequence.  [default: max_seq_len]")
@click.option("--source-length", type=click.IntRange(min=1),
              help="Tokens of an encoder-decoder's source.  [default: as --length]")
@click.option("--memory", metavar="SIZE", help="Memory that the model must fit into, such as 8GB.  [default: what there is]")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(spec: str, batch_size: int, length: int | None, source_length: int | None, memory: str | None,
            as_json: bool) -> None:
    """Show what a model is made of and what it costs.

    SPEC is a run folder, a run.json, or a YAML or JSON file. The file holds a run's config or fields of TransformerConfig;
    among these, `model: seq2seq` means an encoder-decoder.
    """
    data = read_spec(Path(spec))
    room = machine_room().total if memory is None else _size(memory)
    config, assembly = model_of(data)
    skeleton = config.skeleton(assembly)
    length = length or config.max_seq_len
    lengths = {"length": length}
    if skeleton.model.has_source:
        lengths["source_length"] = source_length or length
    elif source_length:
        raise UserError(f"--source-length: model {assembly!r} has no source")
    facts: dict[str, Any] = {**_costs(skeleton, batch_size, **lengths), "batch_size": batch_size, **lengths,
                             "memory_bytes": room}
    if progress := _progress(data):
        facts["run"] = progress
    if as_json:
        say(json.dumps(facts, indent=2))
    else:
        _print(skeleton, facts, " -> ".join(str(lengths[name]) for name in sorted(lengths, reverse=True)))


def _progress(data: Mapping[str, Any]) -> dict[str, Any]:
    """How far the run is that a spec file was written by; empty where it says nothing of that."""
    if not isinstance(data.get("status"), str):
        return {}
    return {name: data[name] for name in ("status", "step", "signal") if name in data}


def _costs(skeleton: Skeleton, batch_size: int, **lengths: int) -> dict[str, Any]:
    parameters, flops, activations, state, unknown = skeleton.parameter_count(), None, 0, None, ""
    try:
        flops, activations = skeleton.flops_per_token(**lengths), skeleton.activation_bytes(batch_size, **lengths)
    except SpecError as error:
        unknown = str(error)
    with suppress(StateError):
        state = skeleton.state_bytes(batch_size, **lengths)
    return {"parameters": parameters, "flops_per_token": flops, "weight_bytes": 4 * parameters, "state_bytes": state,
            "activation_bytes": None if unknown else activations, "inference_bytes": 4 * parameters + (state or 0),
            "training_bytes": TRAINING_BYTES * parameters + activations, "unknown": unknown}


def _print(skeleton: Skeleton, facts: Mapping[str, Any], lengths: str) -> None:
    rows = [(row.name, row.made_of, f"{row.parameters:,}") for row in skeleton.rows()]
    width = line_width()
    say("\n".join(table(rows, width, wrapped=1, to_the_right=[2], headed=False)) + "\n")
    if facts["unknown"]:
        forward = f"{facts['unknown']}; activations are left out below"
    else:
        forward = f"{facts['flops_per_token'] / 1e6:,.1f} MFLOP per token, in rows of {lengths}"
    state, room = facts["state_bytes"], facts["memory_bytes"]
    decoding = "no state: the model is not causal, or a part of it keeps none" if state is None else f"{gib(state)} of state"
    lines = {"parameters": f"{facts['parameters']:,}: {gib(facts['weight_bytes'])} in fp32, "
                           f"{gib(facts['weight_bytes'] // 2)} in bf16",
             "forward": forward, "decoding": f"{decoding}; {facts['batch_size']} x {lengths} tokens, fp32",
             **{name: f"{gib(size)} of {gib(room)}: {'fits' if size <= room else 'does not fit'}"
                for name, size in (("inference", facts["inference_bytes"]), ("training", facts["training_bytes"]))}}
    if run := facts.get("run"):
        status = UNFINISHED.get(run["status"], run["status"])
        signal = f" by {run['signal']}" if "signal" in run else ""
        lines = {"run": f"{status} at step {run.get('step', 'unknown')}{signal}", **lines}
    for name, text in lines.items():
        say("\n".join(labelled(name, text, width, indent=12)))


def _size(text: str) -> int:
    """Bytes in a text such as `8GB`; units are powers of 1024."""
    parts = re.fullmatch(r"\s*([0-9]+(?:[.][0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if parts is None:
        raise UserError(f"--memory {text}: expected a size such as 8GB or 512MB")
    return int(float(parts[1]) * UNITS[parts[2]])
