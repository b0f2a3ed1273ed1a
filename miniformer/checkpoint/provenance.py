"""Which packages, in which versions, a model was made with: saved with the model, and compared when it is loaded.

There are four outcomes. *Identical*: the same versions are installed. *Compatible*: some versions differ, and the model fits.
*Needs migration*: some versions differ, and the model does not fit. *Missing*: a package is not installed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from miniformer.config.slots import SLOTS
from miniformer.kernel.distributions import version_of
from miniformer.kernel.entries import DISTRIBUTION, OURS, normalise_distribution
from miniformer.kernel.errors import UnavailableComponent, UnknownComponent, UserError
from miniformer.kernel.registry import current_registry

PACKAGES = ("torch", "pytorch-lightning", "pydantic", "tokenizers", "safetensors")


def provenance(spec: Any) -> dict[str, Any]:
    """The providers of the components that `spec` names: distribution -> version; miniformer is always among them."""
    versions = _registered()
    names = {OURS, *_providers(spec)} & versions.keys()
    return {"providers": {name: versions[name] for name in sorted(names)}}


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: version_of(name) or "unknown" for name in PACKAGES}}


def other_versions(saved: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The providers whose version has changed since a model was saved: name, version then, version now.

    Args:
        saved: the data of the model's `config.json`.

    Raises:
        UnknownComponent: providers are not installed; the text names them, the components that the model has of them, and the
            command that installs them.
    """
    then = {name: str(version) for name, version in saved.get("providers", {}).items()}
    registered = _registered()
    now = {name: registered.get(name) or version_of(name) for name in then}
    if missing := [name for name in then if now[name] is None]:
        wanted = " ".join(f"{name}=={then[name]}" for name in missing)
        has = list(dict.fromkeys(f"{kind} {name.partition(':')[2]}" for kind, name in _qualified(saved)
                                 if name.partition(":")[0] in missing))
        needs = f" (the model needs {', '.join(has)})" if has else ""
        raise UnknownComponent(f"missing: this model was made with {', '.join(missing)}, not installed here{needs}; "
                               f"to get it: pip install {wanted}" + "".join(map(_what_is_left, missing)))
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


def _registered() -> dict[str, str]:
    """The versions of the distributions whose components are registered."""
    return {entry.distribution: entry.version for entry in current_registry().entries() if entry.kind != DISTRIBUTION}


def _what_is_left(distribution: str) -> str:
    """A line for each metadata of a distribution that are there and cannot be read."""
    lines = [entry.reason for entry in current_registry().entries(DISTRIBUTION)
             if normalise_distribution(entry.name).startswith(f"{distribution}-")]
    return "".join(f"\n  {line}" for line in lines)


def _providers(spec: Any) -> Iterator[str]:
    """The distributions in qualified names of components, however deeply specs nest, and of extensions."""
    return (name.partition(":")[0] for _, name in _qualified(spec))


def _qualified(spec: Any, kind: str = "component") -> Iterator[tuple[str, str]]:
    """The kind and the name of each component with a qualified name, however deeply specs nest, and of extensions.

    Args:
        kind: what `spec` is; the kind of a component inside another one is the name of the option.
    """
    if isinstance(spec, dict):
        extensions = spec.get("extensions")
        names = [("extension", name) for name in (extensions if isinstance(extensions, dict) else ())]
        yield from ((of, name) for of, name in [(kind, spec.get("name")), *names] if isinstance(name, str) and ":" in name)
        for field, value in spec.items():
            yield from _qualified(value, SLOTS[field].kind if field in SLOTS else field)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from _qualified(value, kind)
