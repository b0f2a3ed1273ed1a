"""What a process of its own measures: steps of training in a plain loop, decoding, and the memory that the machine reads.

As in `miniformer.bench.work`, a measurement is a function of a channel: it sends None once it is ready, and then an answer for
each (seconds, rows) that it receives. An answer is a `Sample`, or several by name.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from miniformer.bench import work
from miniformer.bench.contestant import Setting
from miniformer.bench.rounds import Sample
from miniformer.bench.work import WARM_UP, peak_bytes, settled

from .peers import Trainable, Write
from .sizes import Size

Measure = Callable[[Connection], None]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where everyone trains and writes."""
LR, CLIP, BETAS, WEIGHT_DECAY = 1e-4, 1.0, (0.9, 0.95), 0.1
PROMPT = 64
"""Tokens of a prompt."""
READ_BYTES = 2**28
"""Memory that is read to know how fast it is: more than caches hold."""
FIRST_TOKENS = 3
"""How often the first token is timed in a turn."""
UNCACHED = 8
"""Steps that are timed of a contestant without a cache."""


def serve(channel: Connection, measure: Measure, threads: int | None) -> None:
    """Measure in this process until nobody asks any more; what goes wrong is sent as a text.

    Args:
        threads: that torch may use; None: as many as it does by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends it
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        measure(channel)
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:
        channel.send(f"{type(error).__name__}: {error}")


def raw_loop(channel: Connection, size: Size, precision: Any, compiled: bool, make: Callable[[Size], Trainable]) -> None:
    """Tokens per second of whole steps: forward, loss, backward, clipping, fused AdamW."""
    with torch.device(DEVICE):
        model, loss = make(size)
        rows = [torch.randint(size.vocab_size, (size.batch_size, size.length + 1)) for _ in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    called = torch.compile(model) if compiled else model
    steps(channel, lambda i: loss(called, rows[i % len(rows)]), optimizer, size, precision)


def steps(channel: Connection, loss: Callable[[int], torch.Tensor], optimizer: torch.optim.Optimizer, size: Size,
          precision: Any) -> None:
    """As `raw_loop`, of any loss of step i."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    done = 0

    def step() -> None:
        nonlocal done
        with torch.autocast(DEVICE, torch.bfloat16) if precision == "bf16" else nullcontext():
            value = loss(done)
        value.backward()
        clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1

    for _ in range(WARM_UP):
        step()
    channel.send(None)
    while True:
        seconds, _ = channel.recv()
        settled()
        before, start = done, perf_counter()
        while perf_counter() - start < seconds or done == before:
            step()
        settled()
        channel.send(Sample((done - before) * size.batch_size * size.length / (perf_counter() - start), peak_bytes()))


def decoding(channel: Connection, make: Callable[[Size, int, int], Write], size: Size, rows: int, new: int, threads: int,
             cached: bool, warm_up: int) -> None:
    """New tokens per second of greedy texts with the prompt's pass (`whole`) and without (`steady`); first tokens per second.

    A step without a cache costs what its text is long, so there the steps in the middle of the text stand for all.
    """
    with torch.device(DEVICE):
        write = make(size, PROMPT + new, threads)

    def timed(prompt: int, count: int) -> float:
        ids = torch.randint(size.vocab_size, (rows, prompt), device=DEVICE)
        settled()
        start = perf_counter()
        written = write(ids, count)
        settled()
        spent = perf_counter() - start
        if written.shape != (rows, prompt + count):
            raise RuntimeError(f"it wrote {list(written.shape)}; expected {[rows, prompt + count]}")
        return spent

    timed(PROMPT, 1)
    timed(PROMPT, min(new, warm_up))
    channel.send(None)
    while True:
        seconds, _ = channel.recv()
        begun, wholes = perf_counter(), []
        first = median(timed(PROMPT, 1) for _ in range(FIRST_TOKENS))
        while not wholes or perf_counter() - begun < seconds:
            if cached:
                wholes.append(timed(PROMPT, new))
            else:
                count = min(new, UNCACHED)
                wholes.append(first + (new - 1) * timed(PROMPT + (new - count) // 2, count) / count)
        whole, peak = median(wholes), peak_bytes()
        channel.send({"whole": Sample(rows * new / whole, peak), "first": Sample(1 / first, peak),
                      "steady": Sample(rows * (new - 1) / max(whole - first, 1e-9), peak)})


def gemm(channel: Connection, precision: Any) -> None:
    """Operations per second of one large matrix product."""
    work.gemm(channel, None, Setting(batch_size=1, length=1, precision=precision, decode_precision=32))


def bandwidth(channel: Connection) -> None:
    """Bytes per second that all threads together read from memory, in one long sum."""
    numbers = torch.ones(READ_BYTES // 4, device=DEVICE)
    channel.send(None)
    while True:
        seconds, _ = channel.recv()
        settled()
        start, count = perf_counter(), 0
        while perf_counter() - start < seconds or count == 0:
            numbers.sum()
            count += 1
        settled()
        channel.send(Sample(count * READ_BYTES / (perf_counter() - start), peak_bytes()))
