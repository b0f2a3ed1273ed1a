"""A contest: runs side by side in training and in decoding, each in a process of its own, in interleaved rounds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from miniformer.kernel.errors import MiniformerError, RunError, UserError
from miniformer.train.train_config import TrainConfig

from .contestant import Account, Setting, account, completed
from .rounds import Sample, figures, play, utilisation
from .work import work

Ask = Callable[[float, int], Sample]
"""Measures for some seconds, with some rows."""


def compare(runs: Sequence[tuple[str, TrainConfig]], setting: Setting, *, rounds: int, seconds: float,
            only: str | None = None, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The figures of some runs, the first of which the others are compared with, as JSON data.

    Args:
        runs: each with what it is called.
        setting: what is the same for all.
        rounds: how often each is measured.
        seconds: how long, each time.
        only: `train` or `decode`; None: both.
        told: called with the name of what is measured next.

    Raises:
        UserError: a run cannot be built or compared.
        RunError: a process of the contest failed.
    """
    known: list[tuple[str, TrainConfig, Account]] = []
    for name, run in runs:
        with _naming(name):
            config = completed(run, setting)
            known.append((name, config, account(config, setting)))
    if only == "decode" and not any(one.writes for _, _, one in known):
        raise UserError("none of these models writes; one that does has causal: true and head lm, or is a seq2seq")
    found: dict[str, Any] = {
        "setting": {**asdict(setting), "prompt": setting.prompt, "rounds": rounds, "seconds": seconds,
                    "threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"},
        "contestants": [{"name": name, "task": one.name, "parameters": one.parameters, "flops_per_token": one.flops_per_token,
                         "train": None, "decode": []} for name, _, one in known]}
    if only != "decode":
        told("training")
        _train(known, setting, found, rounds, seconds)
    if only != "train" and any(one.writes for _, _, one in known):
        told("decoding")
        _decode(known, setting, found, rounds, seconds)
    return found


def _train(known: Sequence[tuple[str, TrainConfig, Account]], setting: Setting, found: dict[str, Any], rounds: int,
           seconds: float) -> None:
    with ExitStack() as stack:
        machine = stack.enter_context(process("the machine", "gemm", None, setting))
        asks = [stack.enter_context(process(name, "train", config, setting)) for name, config, _ in known]
        # short turns of the machine's product suffice for its peak
        turns = [partial(machine, min(seconds, 0.5), 1), *(partial(ask, seconds, setting.batch_size) for ask in asks)]
        peak, *samples = play(turns, rounds)
    found["setting"]["gemm_flops"] = max(sample.rate for sample in peak)
    for entry, (_, _, one), own in zip(found["contestants"], known, samples, strict=True):
        entry["train"] = figures(own, samples[0])
        entry["train"]["mfu"] = utilisation(entry["train"]["tokens_per_second"], one.flops_per_token, peak)


def _decode(known: Sequence[tuple[str, TrainConfig, Account]], setting: Setting, found: dict[str, Any], rounds: int,
            seconds: float) -> None:
    writing = [i for i, (_, _, one) in enumerate(known) if one.writes]
    for rows in sorted({1, setting.batch_size}):
        with ExitStack() as stack:
            asks = [stack.enter_context(process(known[i][0], "decode", known[i][1], setting)) for i in writing]
            samples = play([partial(ask, seconds, rows) for ask in asks], rounds)
        for i, own in zip(writing, samples, strict=True):
            found["contestants"][i]["decode"].append({"batch_size": rows, **figures(own, samples[0])})


@contextmanager
def process(name: str, measured: str, config: TrainConfig | None, setting: Setting) -> Iterator[Ask]:
    """A process that measures when asked; see `work`. It is waited for when it is first asked, and ended at the end.

    Raises, when asked:
        UserError, RunError: what went wrong in it, with the name.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs, measured, config, setting), daemon=True)
    worker.start()
    theirs.close()
    ready = False

    def answer() -> Any:
        try:
            said = ours.recv()
        except EOFError:
            worker.join()
            raise RunError(f"{name}: its process ended with code {worker.exitcode} while it was measured ({measured}); "
                           "if it was killed, memory may have run out: a smaller --batch-size or --length needs less") from None
        if isinstance(said, Sample) or said is None:
            return said
        text, exit_code = said
        raise (UserError if exit_code == UserError.exit_code else RunError)(f"{name}: {text}")

    def ask(seconds: float, rows: int) -> Sample:
        nonlocal ready
        if not ready:
            answer()
            ready = True
        ours.send((seconds, rows))
        sample: Sample = answer()
        return sample

    try:
        yield ask
    finally:
        worker.kill()  # Lightning would only note a SIGTERM
        worker.join()
        ours.close()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except MiniformerError as error:
        raise (UserError if error.exit_code == UserError.exit_code else RunError)(f"{name}: {error}") from error
