"""Which packages, in which versions, shaped a model: read from the qualified names in its spec, and compared when it is loaded.

A saved model is *identical* to what is installed, *compatible* (other versions, and everything fits), *needs migration* (other
versions, and something does not fit), or a package of it is *missing*.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from miniformer.kernel.errors import UnavailableComponent, UnknownComponent, UserError
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


def other_versions(saved: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Providers whose version is not the one that a model was saved with: name, version then, version now.

    Args:
        saved: what its `config.json` says.

    Raises:
        UnknownComponent: some are not installed; all are told, with the command that installs them.
    """
    then = {name: str(version) for name, version in saved.get("providers", {}).items()}
    registered = {entry.distribution: entry.version for entry in current_registry().entries()}
    now = {name: registered.get(name) or _version(name) for name in then}
    if missing := [name for name in then if now[name] is None]:
        wanted = " ".join(f"{name}=={then[name]}" for name in missing)
        raise UnknownComponent(f"missing: this model was made with {', '.join(missing)}, not installed here; to get it: "
                               f"pip install {wanted}")
    return [(name, then[name], str(now[name])) for name in then if now[name] != then[name]]


@contextmanager
def migrating(saved: Mapping[str, Any]) -> Iterator[None]:
    """Building a saved model inside: where it does not fit and a provider has another version, both are told.

    Raises:
        UserError: something does not fit, or a provider is missing.
    """
    others = other_versions(saved)
    try:
        yield
    except UserError as error:
        if not others or isinstance(error, UnavailableComponent):
            raise
        made = " and ".join(f"{name} {then} (here: {now})" for name, then, now in others)
        back = " ".join(f"{name}=={then}" for name, then, _ in others)
        raise UserError(f"needs migration: this model was made with {made}, and does not fit what is installed:\n  {error}\n"
                        f"  to use it as it was made: pip install {back}") from error


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers(spec: Any) -> Iterator[str]:
    """Distributions in the qualified names of component specs, however deeply they nest, and of extensions."""
    if isinstance(spec, dict):
        extensions = spec.get("extensions")
        for name in (spec.get("name"), *(extensions if isinstance(extensions, dict) else ())):
            if isinstance(name, str) and ":" in name:
                yield name.partition(":")[0]
        for value in spec.values():
            yield from _providers(value)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from _providers(value)
