"""Cells of the comparison: everyone who takes part in one thing, at one size, measured in interleaved rounds.

A cell keeps the samples themselves, so that whoever reads it can set any two rows beside each other, round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from miniformer.bench.rounds import play

from . import ours
from .contestants import Contestant
from .machine import machine
from .measuring import DEVICE, PROMPT, Measure, bandwidth, decoding, gemm
from .processes import Failed, Found, Pool
from .sizes import Size

MACHINE = "machine"
"""The row of the machine itself: its matrix product, or what it reads from memory."""
SHORT = 0.5
"""Seconds that suffice for the machine's own turn."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds, seconds: turns of each, and how long a turn is at least.
        threads: of everyone; None: in training as many as torch takes, in decoding both 1 and all, and ours as it likes.
        new: tokens that are written after a prompt.
        batches: rows that are decoded at once.
        preloaded: see `processes.Pool`.
        told: is told what goes on.
    """

    rounds: int = 3
    seconds: float = 3.0
    threads: int | None = None
    new: int = 256
    batches: tuple[int, ...] = (1, 8)
    preloaded: tuple[str, ...] = ()
    told: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Turn:
    """A row of a cell, and what measures it."""

    row: dict[str, Any]
    measure: Measure
    threads: int | None


def train(size: Size, precision: Any, compiled: bool, contestants: Sequence[Contestant], effort: Effort) -> dict[str, Any]:
    """Tokens trained on per second, and peak memory."""
    turns = [_machine(effort, partial(gemm, precision=precision))]
    for one in contestants:
        if one.train is not None and (one.compiles or not compiled):
            row = {**_row(one), "flops_per_token": ours.flops_per_token(one.family, size)}
            turns.append(Turn(row, partial(one.train, size=size, precision=precision, compiled=compiled), effort.threads))
    return _played(turns, size, effort, precision=precision, compiled=compiled)


def overhead(size: Size, effort: Effort) -> dict[str, Any]:
    """The same step of ours in Lightning's loop and in a plain one, in fp32."""
    ways = (("trainer", ours.train), ("raw loop", ours.train_in_raw_loop))
    turns = [Turn({"name": name, "ours": True}, partial(way, family="llama", size=size, precision=32, compiled=False),
                  effort.threads) for name, way in ways]
    return _played(turns, size, effort, precision=32)


def decode(size: Size, rows: int, contestants: Sequence[Contestant], effort: Effort) -> dict[str, Any]:
    """Tokens written per second, with the prompt's pass and without, and the time to the first one."""
    turns = [_machine(effort, bandwidth)]
    cores = torch.get_num_threads()
    for one in contestants:
        if one.decode is None:
            continue
        own = one.ours or DEVICE != "cpu"
        counts = [effort.threads] if effort.threads else [None] if own else sorted({1, cores})
        for threads in counts:
            row = {**_row(one), "threads": threads, "cached": one.cached,
                   "bytes_per_step": ours.read_per_step(one.family, size, rows, PROMPT + effort.new // 2)}
            measure = partial(decoding, make=one.decode, size=size, rows=rows, new=effort.new, threads=threads or cores,
                              cached=one.cached, warm_up=one.warm_up)
            turns.append(Turn(row, measure, threads))
    return _played(turns, size, effort, precision=32, rows=rows, prompt=PROMPT, new=effort.new)


def _machine(effort: Effort, measure: Measure) -> Turn:
    return Turn({"name": MACHINE, "ours": False}, measure, effort.threads)


def _row(one: Contestant) -> dict[str, Any]:
    return {"name": one.name, "ours": one.ours}


def _played(turns: Sequence[Turn], size: Size, effort: Effort, **setting: Any) -> dict[str, Any]:
    """The cell of some turns. What could not be measured has its reason in the place of rates."""
    failed: dict[int, str] = {}

    with Pool(effort.preloaded) as pool:
        def turn(place: int) -> Found | None:
            one = turns[place]
            if place in failed:
                return None
            seconds = min(effort.seconds, SHORT) if one.row["name"] == MACHINE else effort.seconds
            try:
                return pool.ask(str(place), one.measure, one.threads, seconds)
            except Failed as error:
                failed[place] = str(error)
                effort.told(f"{one.row['name']}: {error}")
                return None

        found: Any = play([partial(turn, place) for place in range(len(turns))], effort.rounds)  # type: ignore[list-item]
    rows = [{**one.row, **({"failed": failed[place]} if place in failed else _figures(found[place], effort.threads == 1))}
            for place, one in enumerate(turns)]
    return {"setting": {**machine(), "size": asdict(size), "rounds": effort.rounds, "seconds": effort.seconds,
                        "threads": effort.threads or torch.get_num_threads(), "per_cpu_second": effort.threads == 1, **setting},
            "rows": rows}


def _figures(found: Sequence[Found], per_cpu_second: bool) -> dict[str, Any]:
    """Peak memory, rates by name, one of each round, and the cores that the process and all others had in each.

    One thread's rates may be told per second of its own CPU time, which others change little.
    """
    cores = [busy for _, busy in found]
    spent = [busy[0] if per_cpu_second and busy is not None and busy[0] > 0 else 1 for busy in cores]
    return {"peak_bytes": max(part.peak_bytes for samples, _ in found for part in samples.values()),
            "rates": {name: [samples[name].rate / share for (samples, _), share in zip(found, spent, strict=True)]
                      for name in found[0][0]},
            "cores": [None if busy is None else [round(one, 2) for one in busy] for busy in cores]}
