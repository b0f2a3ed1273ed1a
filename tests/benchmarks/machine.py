"""What there is to say about the machine, without names, paths and dates: abilities, what is installed, who else is busy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")
"""Abilities of processors that decide how fast matrices are multiplied."""
PACKAGES = ("torch", "pytorch-lightning", "transformers", "litgpt", "x-transformers", "onnxruntime", "tokenizers", "tiktoken")


def machine() -> dict[str, Any]:
    """The GPU, the kind of processor, its abilities, cores that may be used, and versions."""
    told = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in told.read_text().splitlines()] if told.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": facts.get("model name", platform.machine()), "abilities": [flag for flag in FLAGS if flag in flags],
            "cores": cores, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := _version(name))}}


class Busy:
    """Cores that a process had since this was made, and that all others together had; None where nobody tells."""

    def __init__(self, pid: int) -> None:
        self.pid, self.started, self.before = pid, perf_counter(), _seconds(pid)

    def cores(self) -> tuple[float, float] | None:
        after, spent = _seconds(self.pid), perf_counter() - self.started
        if self.before is None or after is None:
            return None
        own, everyone = (now - then for now, then in zip(after, self.before, strict=True))
        return own / spent, max(0.0, everyone - own) / spent


def _seconds(pid: int) -> tuple[float, float] | None:
    """CPU time of a process and of the whole machine."""
    try:
        own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:]
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    return sum(map(int, own)) / tick, sum(map(int, (user, nice, system, irq, softirq))) / tick


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
