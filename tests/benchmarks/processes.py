"""Processes that measure when they are asked, one for each contestant, as many alive at once as memory holds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.bench.rounds import Sample

from .machine import Busy
from .measuring import Measure, serve

PART_OF_MEMORY = 0.7
"""Of what is free at the start, that all processes together may take."""
Found = tuple[dict[str, Sample], tuple[float, float] | None]
"""Samples by name, and the cores that the process and everyone else had meanwhile."""


class Failed(Exception):
    """A contestant could not be measured; says why."""


class Worker:
    """One process. It is waited for when it is first asked."""

    def __init__(self, measure: Measure, threads: int | None, method: str) -> None:
        context = multiprocessing.get_context(method)
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, measure, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def ask(self, seconds: float) -> Found:
        """What it measures in some seconds."""
        if not self.ready:
            self._answer()
            self.ready = True
        assert self.process.pid is not None
        busy = Busy(self.process.pid)
        self.channel.send((seconds, 1))
        said = self._answer()
        return {"whole": said} if isinstance(said, Sample) else said, busy.cores()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.channel.close()

    def _answer(self) -> Any:
        try:
            said = self.channel.recv()
        except EOFError:
            self.process.join()
            raise Failed(f"its process ended with code {self.process.exitcode}") from None
        if isinstance(said, str):
            raise Failed(said)
        return said


class Pool:
    """Workers by name. Where memory is short, that which was asked longest ago ends, and is started anew when asked again.

    Args:
        preloaded: modules that processes share instead of importing them; they start faster, and their memory says nothing.
    """

    def __init__(self, preloaded: Sequence[str] = ()) -> None:
        self.method = "forkserver" if preloaded else "spawn"
        if preloaded:
            multiprocessing.get_context("forkserver").set_forkserver_preload(list(preloaded))
        self.budget = PART_OF_MEMORY * free_bytes()
        self.alive: dict[str, tuple[Worker, int]] = {}
        self.largest = 0

    def ask(self, name: str, measure: Measure, threads: int | None, seconds: float) -> Found:
        """What a worker measures in some seconds.

        Raises:
            Failed: it could not be measured.
        """
        worker, _ = self.alive.pop(name, (None, 0))
        if worker is None:
            while self.alive and sum(peak for _, peak in self.alive.values()) + self.largest > self.budget:
                self.alive.pop(next(iter(self.alive)))[0].end()
            worker = Worker(measure, threads, self.method)
        try:
            found = worker.ask(seconds)
        except BaseException:
            worker.end()
            raise
        peak = max(sample.peak_bytes for sample in found[0].values())
        self.alive[name], self.largest = (worker, peak), max(self.largest, peak)
        return found

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        for worker, _ in self.alive.values():
            worker.end()
        self.alive.clear()


def free_bytes() -> float:
    """Memory that programs may still take; where nobody says, without bound."""
    told = Path("/proc/meminfo")
    lines = dict(line.split(":", 1) for line in told.read_text().splitlines()) if told.is_file() else {}
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else float("inf")
