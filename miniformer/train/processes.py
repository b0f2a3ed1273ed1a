"""The processes of a run: which of them this one is, and why one of them died.

A launcher, which is torchrun or Lightning itself, says in the environment which process this is. Beside its own processes a run
may have workers, which make its batches.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")
LOST = re.compile(r"(closed|reset) by peer|[Rr]emote process exited|[Bb]roken pipe")
"""What torch's communication says where a process on the other side has ended."""


def is_first() -> bool:
    """Whether this process writes the files and the output of its run. Of several processes, exactly one does."""
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK") if name in os.environ), "0")
    return rank == "0" and ("RANK" in os.environ or os.environ.get("NODE_RANK", "0") == "0")


def launched() -> tuple[int, int] | None:
    """How many processes this machine has, and how many machines there are, if torchrun started the run; else None."""
    try:
        per_machine, in_all = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    except KeyError:
        return None
    return per_machine, in_all // per_machine


def why_a_process_died(error: BaseException) -> str:
    """Why a worker or another process of the run died, if an error comes from its death; else ""."""
    texts = [str(one) for one in _chain(error) if isinstance(one, RuntimeError)]
    deaths = [found for found in map(WORKER.search, texts) if found]
    if deaths:
        # torch tells the death itself, with the signal, and then that it misses the worker
        death = next((found for found in deaths if found[2]), deaths[0])
        name = _signal_named(death[2])
        how = f"was killed by {name}" if name else "ended unexpectedly"
        return f"the worker process with pid {death[1]}, which made batches, {how}; {_advice(name)}"
    if launched() not in (None, (1, 1)) and any(map(LOST.search, texts)):
        return ("another process of this run has ended, and its own message says why; if there is none, it was killed, as the "
                "system does when memory runs out: a smaller batch_size, or fewer processes on this machine, need less")
    return ""


def death_of(exit_code: int | None) -> str:
    """How a process ended, from its exit code; a negative one is the signal that killed it."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _advice(name: str) -> str:
    if name == "SIGKILL":
        return "the system does this when memory runs out: a smaller num_workers or batch_size needs less"
    if name == "SIGBUS":
        return "shared memory has run out: a smaller num_workers needs less, and num_workers 0 needs none"
    return "with num_workers 0 the run makes its batches itself, and shows the error"


def _signal_named(description: str | None) -> str:
    """The name of the signal that has a description, such as SIGKILL for `Killed`; the description where none has it."""
    names = (one.name for one in signal.Signals if signal.strsignal(one) == description)
    return next(names, description or "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
