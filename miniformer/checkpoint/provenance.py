"""Which packages, in which versions, shaped a model: read from the qualified names in its spec."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

from miniformer.kernel.registry import OURS, current_registry

PACKAGES = ("torch", "pytorch-lightning", "pydantic", "tokenizers", "safetensors")


def provenance(spec: Any) -> dict[str, Any]:
    """Providers of the components that `spec` names, as distribution -> version; miniformer is always one."""
    known = {entry.distribution: entry.version for entry in current_registry().entries()}
    names = {OURS, *_providers(spec)} & known.keys()
    return {"providers": {name: known[name] for name in sorted(names)}}


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _providers(spec: Any) -> Iterator[str]:
    """Distributions in the qualified names of component specs, however deeply they nest."""
    if isinstance(spec, dict):
        name = spec.get("name")
        if isinstance(name, str) and ":" in name:
            yield name.partition(":")[0]
        for value in spec.values():
            yield from _providers(value)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from _providers(value)
