"""How much memory there is: what the machine, its control group, `ulimit` or a GPU allows. Imports no torch.

A bound is what could be had if nothing else were running, so what needs more cannot fit. What is free at the moment is for
warnings only: memory of others may be given back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from miniformer.kernel.errors import SpecError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SMALL = 2**24
"""Bytes that fit everywhere, so that the room for them is not looked up."""
NO_LIMIT = 2**60
"""Control groups without a limit report a number from here on, or a word."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of one place.

    Attributes:
        total: the most bytes that can be had there.
        free: bytes that are free now.
        bound: what sets the bound, such as `this machine has`.
        share: what follows the size where several processes share it.
    """

    total: int
    free: int
    bound: str
    share: str = ""

    def __str__(self) -> str:
        return f"{self.bound} {gib(self.total)}{self.share}"

    def shared_by(self, processes: int) -> Room:
        """The part of each of several processes that need equally much."""
        if processes == 1:
            return self
        return Room(self.total // processes, self.free // processes, self.bound, f" for each of {processes} processes")


def machine_room() -> Room:
    """The smallest bound on this process: of the machine, a control group that it is in, or `ulimit`."""
    rooms = [_physical(), *_control_groups(), *_own_limits()]
    tightest = min(rooms, key=lambda room: room.total)
    return Room(tightest.total, min(room.free for room in rooms), tightest.bound)


def gpu_room() -> Room:
    """The memory of the smallest GPU. There has to be one."""
    import torch

    sizes = [torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count())]
    return Room(min(sizes), min(sizes), "the GPU has" if len(sizes) == 1 else "the smallest GPU has")


def check_weights(numbers: int) -> None:
    """Refuse weights that have no room where tensors are made now.

    Args:
        numbers: that they have at least, in the default float type.

    Raises:
        SpecError: with what they take and what there is.
    """
    import torch

    probe, need = torch.empty(0), numbers * torch.get_default_dtype().itemsize
    if need < SMALL or probe.is_meta or type(probe) is not torch.Tensor:  # tensors without storage take nothing
        return
    room = gpu_room() if probe.is_cuda else machine_room()
    if need > room.total:
        raise SpecError(f"the weights of this model take {gib(need)}, and {room}; a smaller d_model, d_ff, n_layers or "
                        "vocab_size takes less")


def gib(size: float) -> str:
    """A number of bytes as people read it."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.2f} MiB"


def _physical() -> Room:
    """Memory and swap of the machine."""
    fields = _fields(PROC / "meminfo")
    if "MemTotal" not in fields:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Room(size, size, "this machine has")
    swap, free_swap = fields.get("SwapTotal", 0), fields.get("SwapFree", 0)
    return Room(fields["MemTotal"] + swap, fields.get("MemAvailable", fields["MemTotal"]) + free_swap, "this machine has")


def _control_groups() -> Iterator[Room]:
    """The limits of the control groups that hold this process, of both versions; a container's is one of them."""
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            second = controllers == ""
            if not second and "memory" not in controllers.split(","):
                continue
            root = CGROUPS if second else CGROUPS / "memory"
            limit, usage = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folder = root / path.lstrip("/")
            for group in (folder, *folder.parents):  # a container may not see its own path, but always the root
                size = _number(group / limit)
                if size is not None:
                    size += _swap(group, second, size)
                    # files that are kept in memory only for speed count as used, and are given up where memory is short
                    kept = _fields(group / "memory.stat", unit=1).get("inactive_file" if second else "total_inactive_file", 0)
                    free = size - max(0, (_number(group / usage) or 0) - kept)
                    yield Room(size, max(0, free), f"the control group of this process ({limit}) allows")
                if group == root:
                    break


def _swap(group: Path, second: bool, size: int) -> int:
    """Bytes that a control group may move to disk, at most those that the machine has."""
    on_machine = _fields(PROC / "meminfo").get("SwapTotal", 0)
    if second:
        allowed = _number(group / "memory.swap.max")
    else:
        both = _number(group / "memory.memsw.limit_in_bytes")
        allowed = None if both is None else max(0, both - size)
    return on_machine if allowed is None else min(on_machine, allowed)


def _own_limits() -> Iterator[Room]:
    """What `ulimit` leaves: it bounds addresses and data of the process, whose libraries have taken a part already."""
    try:
        import resource
    except ImportError:  # there is no ulimit on Windows
        return
    taken = _fields(PROC / "self" / "status")
    for limit, field, flag in ((resource.RLIMIT_AS, "VmSize", "-v"), (resource.RLIMIT_DATA, "VmData", "-d")):
        size = resource.getrlimit(limit)[0]
        if size != resource.RLIM_INFINITY:
            left = max(0, size - taken.get(field, 0))
            yield Room(left, left, f"ulimit {flag} is {gib(size)}, of which is left")


def _fields(path: Path, unit: int = 1024) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line, in bytes; none where it cannot be read."""
    fields: dict[str, int] = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) > 1 and words[1].isdecimal():
                fields[words[0]] = int(words[1]) * unit
    return fields


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or it means no limit."""
    with suppress(OSError, ValueError):
        number = int(path.read_text())
        return number if number < NO_LIMIT else None
    return None
