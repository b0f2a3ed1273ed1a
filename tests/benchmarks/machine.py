"""What there is to say about the machine and what is installed, without names, paths and dates."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")
"""Abilities of processors that decide how fast matrices are multiplied."""
PACKAGES = ("torch", "pytorch-lightning", "transformers", "litgpt", "x-transformers", "onnxruntime", "tokenizers", "tiktoken")


def machine() -> dict[str, Any]:
    """Kind of processor, its abilities, cores that may be used, and versions."""
    told = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in told.read_text().splitlines()] if told.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": facts.get("model name", platform.machine()), "abilities": [flag for flag in FLAGS if flag in flags],
            "cores": cores, "gpu": torch.cuda.is_available(), "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := _version(name))}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
