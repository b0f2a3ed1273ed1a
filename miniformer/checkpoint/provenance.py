"""Which packages, in which versions, a model was made with: saved with the model, and compared when it is loaded.

There are four outcomes. *Identical*: the same versions are installed. *Compatible*: some versions differ, and the model fits.
*Needs migration*: some versions differ, and the model does not fit. *Missing*: a package is not installed.
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
    """The providers of the components that `spec` names: distribution -> version; miniformer is always among them."""
    versions = {entry.distribution: entry.version for entry in current_registry().entries()}
    names = {OURS, *_providers(spec)} & versions.keys()
    return {"providers": {name: versions[name] for name in sorted(names)}}


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def other_versions(saved: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The providers whose version has changed since a model was saved: name, version then, version now.

    Args:
        saved: the data of the model's `config.json`.

    Raises:
        UnknownComponent: providers are not installed; the text names them all and the command that installs them.
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
    """Build a saved model inside: if it does not fit, the error also names the providers whose version has changed.

    Raises:
        UserError: the model does not fit, or a provider is missing.
    """
    changed = other_versions(saved)
    try:
        yield
    except UserError as error:
        if not changed or isinstance(error, UnavailableComponent):
            raise
        made = " and ".join(f"{name} {then} (here: {now})" for name, then, now in changed)
        back = " ".join(f"{name}=={then}" for name, then, _ in changed)
        raise UserError(f"needs migration: this model was made with {made}, and does not fit what is installed:\n  {error}\n"
                        f"  to use it as it was made: pip install {back}") from error


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers(spec: Any) -> Iterator[str]:
    """The distributions in qualified names of components, however deeply specs nest, and of extensions."""
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
