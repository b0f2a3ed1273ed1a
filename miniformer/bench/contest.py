"""A contest: several runs are measured in training and in decoding, each in its own process, in interleaved rounds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch

from miniformer.kernel.errors import MiniformerError, RunError, UserError
from miniformer.train.cost import check_room
from miniformer.train.processes import death_of
from miniformer.train.train_config import TrainConfig

from .contestant import Account, Setting, account, completed, trained_by
from .rounds import Sample, figures, play, utilisation
from .work import work

Measure = Callable[[float, int], Sample]
"""Measures a contestant for a number of seconds, with a number of rows."""


class Contestant(NamedTuple):
    """A run in a contest: its name, its completed config, and its costs."""

    name: str
    config: TrainConfig
    account: Account


def compare(runs: Sequence[tuple[str, TrainConfig]], setting: Setting, *, rounds: int, seconds: float,
            only: str | None = None, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure several runs and compare each with the first; return the figures as JSON data.

    Args:
        runs: the name and the config of each run.
        setting: the setting that all runs share.
        rounds: how often each run is measured.
        seconds: how long each measurement takes.
        only: `train` or `decode`; None: both.
        progress: called with the name of each part, `training` or `decoding`, before it starts.

    Raises:
        UserError: a run cannot be built or compared.
        RunError: a process of the contest failed.
    """
    contestants: list[Contestant] = []
    for name, run in runs:
        with _naming(name):
            config = completed(run, setting)
            contestants.append(Contestant(name, config, account(config, setting)))
            if only != "decode":
                check_room(config, *trained_by(config), setting.batch_size * setting.length)
    any_writes = any(contestant.account.writes for contestant in contestants)
    if only == "decode" and not any_writes:
        raise UserError("none of these models writes; one that does has causal: true and head lm, or is a seq2seq")
    results: dict[str, Any] = {
        "setting": {**asdict(setting), "prompt": setting.prompt, "rounds": rounds, "seconds": seconds,
                    "threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"},
        "contestants": [_entry(contestant) for contestant in contestants]}
    if only != "decode":
        progress("training")
        _train(contestants, setting, results, rounds, seconds)
    if only != "train" and any_writes:
        progress("decoding")
        _decode(contestants, setting, results, rounds, seconds)
    return results


def _entry(contestant: Contestant) -> dict[str, Any]:
    """The entry of a contestant in the results, before it is measured."""
    account = contestant.account
    return {"name": contestant.name, "task": account.name, "parameters": account.parameters,
            "flops_per_token": account.flops_per_token, "train": None, "decode": []}


def _train(contestants: Sequence[Contestant], setting: Setting, results: dict[str, Any], rounds: int, seconds: float) -> None:
    """Measure all contestants in training, and put the figures into `results`."""
    with ExitStack() as stack:
        machine = stack.enter_context(process("the machine", "gemm", None, setting))
        measures = [stack.enter_context(process(contestant.name, "train", contestant.config, setting))
                    for contestant in contestants]
        # short turns of the machine's matrix product suffice for its peak
        turns = [partial(machine, min(seconds, 0.5), 1)]
        turns += [partial(measure, seconds, setting.batch_size) for measure in measures]
        peak, *samples = play(turns, rounds)
    results["setting"]["gemm_flops"] = max(sample.rate for sample in peak)
    for entry, contestant, own_samples in zip(results["contestants"], contestants, samples, strict=True):
        entry["train"] = figures(own_samples, samples[0])
        entry["train"]["mfu"] = utilisation(entry["train"]["tokens_per_second"], contestant.account.flops_per_token, peak)


def _decode(contestants: Sequence[Contestant], setting: Setting, results: dict[str, Any], rounds: int, seconds: float) -> None:
    """Measure the contestants that can write in decoding, one text at a time and in batches; add figures to `results`."""
    entries = zip(results["contestants"], contestants, strict=True)
    writers = [(entry, contestant) for entry, contestant in entries if contestant.account.writes]
    for rows in sorted({1, setting.batch_size}):
        with ExitStack() as stack:
            measures = [stack.enter_context(process(contestant.name, "decode", contestant.config, setting))
                        for _, contestant in writers]
            samples = play([partial(measure, seconds, rows) for measure in measures], rounds)
        for (entry, _), own_samples in zip(writers, samples, strict=True):
            entry["decode"].append({"batch_size": rows, **figures(own_samples, samples[0])})


@contextmanager
def process(name: str, measured: str, config: TrainConfig | None, setting: Setting) -> Iterator[Measure]:
    """A function that measures in a process of its own, which runs `work` and is killed at the end of the context.

    The process starts at once; the first call waits until it is ready, so that several can start side by side.

    Raises, when called:
        UserError, RunError: the process failed; the message begins with `name`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs, measured, config, setting), daemon=True)
    worker.start()
    theirs.close()
    ready = False

    def died() -> RunError:
        worker.join()
        return RunError(f"{name}: its worker process {death_of(worker.exitcode)} while it was measured ({measured}); "
                        "if memory has run out, a smaller --batch-size or --length needs less")

    def answer() -> Any:
        try:
            reply = ours.recv()
        except (EOFError, OSError):
            raise died() from None
        if isinstance(reply, Sample) or reply is None:  # None: the process is ready
            return reply
        text, exit_code = reply
        raise (UserError if exit_code == UserError.exit_code else RunError)(f"{name}: {text}")

    def measure(seconds: float, rows: int) -> Sample:
        nonlocal ready
        if not ready:
            answer()
            ready = True
        try:
            ours.send((seconds, rows))
        except OSError:  # a broken pipe would pass for a reader of our output that has seen enough
            raise died() from None
        sample: Sample = answer()
        return sample

    try:
        yield measure
    finally:
        worker.kill()  # not `terminate`: Lightning catches SIGTERM and trains on
        worker.join()
        ours.close()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of a run before the messages of errors."""
    try:
        yield
    except MiniformerError as error:
        told = str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}"  # an error of a file names its line too
        raise (UserError if error.exit_code == UserError.exit_code else RunError)(told) from error
