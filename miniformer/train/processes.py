"""Which of a run's processes this one is. The launcher (torchrun, or Lightning itself) says so in the environment."""

from __future__ import annotations

import os


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
