"""Which of a run's processes this one is, by what the launcher (torchrun, Lightning's own) put into the environment."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Whether this process is the one of its run that writes files and speaks; a run in one process is that process."""
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK") if name in os.environ), "0")
    return rank == "0" and ("RANK" in os.environ or os.environ.get("NODE_RANK", "0") == "0")


def launched() -> tuple[int, int] | None:
    """Processes on this machine and number of machines, where torchrun started the run; otherwise None."""
    try:
        here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    except KeyError:
        return None
    return here, all_of_them // here
