"""Whether a loaded object can be a component of its kind: its class, interface and signature.

How a component behaves is checked elsewhere, by the contract kit.
"""

from __future__ import annotations

import inspect
from typing import cast

from .kinds import Kind
from .signatures import sizes_of


def why_not_a_component(kind: Kind, loaded: object) -> str:
    """Why `loaded` cannot be a component of `kind`, quoting what it is; "" if it can."""
    base = kind.base()
    article = f"a component of kind {kind.name}"
    if not isinstance(loaded, type):
        return f"{article} is a class; this is {type(loaded).__name__} {loaded!r:.80}"
    if not issubclass(loaded, base):
        return f"{article} subclasses {base.__module__}.{base.__name__}; {loaded.__module__}.{loaded.__qualname__} does not"
    if missing := sorted(getattr(loaded, "__abstractmethods__", ())):
        return f"{loaded.__qualname__} does not define {', '.join(missing)}"
    if sizes_of(loaded) != kind.sizes:
        return (f"the constructor of {article} takes (self{''.join(', ' + s for s in kind.sizes)}, *, options); "
                f"{loaded.__qualname__} has {inspect.signature(loaded.__init__)}; {_mend(sizes_of(loaded), kind.sizes)}")
    # pydantic is imported here and not above: listing components needs neither of them
    from .options import options_of, unserialisable_option

    options_of(cast(type, loaded))  # raises where an annotation is wrong: here, and not in the middle of a run
    return unserialisable_option(cast(type, loaded))


def _mend(parameters: tuple[str, ...], sizes: tuple[str, ...]) -> str:
    """How to make a constructor's positional `parameters` the kind's `sizes`."""
    if sorted(parameters) == sorted(sizes):
        return "put them in this order"
    steps = []
    renamed = [f"{name} to {size}" for name, size in zip(parameters, sizes, strict=False) if name != size]
    if renamed:
        steps.append(f"rename {', '.join(renamed)}")
    if len(parameters) < len(sizes):
        steps.append(f"add {', '.join(sizes[len(parameters):])}")
    if len(parameters) > len(sizes):
        steps.append("make the rest keyword-only")
    return " and ".join(steps)
