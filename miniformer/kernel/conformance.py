"""Whether a loaded object can be a component of its kind: class, interface, signature. Behaviour is the contracts' part."""

from __future__ import annotations

import inspect
from typing import cast

from .kinds import Kind


def signature_chain(cls: type) -> list[type]:
    """The classes whose constructors make up that of `cls`: its own, and while `**options` hands on, the parents'."""
    chain = []
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            chain.append(owner)
            kinds = {p.kind for p in inspect.signature(vars(owner)["__init__"]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return chain


def sizes_of(cls: type) -> tuple[str, ...]:
    """The positional parameters of a component's constructor."""
    owners = signature_chain(cls)
    if not owners:
        return ()
    parameters = list(inspect.signature(vars(owners[0])["__init__"]).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional)


def why_not_a_component(kind: Kind, loaded: object) -> str:
    """Why `loaded` is no component of `kind`, quoting what was found; "" if it is one."""
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
    from .options import options_of, unserialisable_option  # a fault in an annotation shows here, not in the middle of a run

    options_of(cast(type, loaded))
    return unserialisable_option(cast(type, loaded))


def _mend(found: tuple[str, ...], sizes: tuple[str, ...]) -> str:
    """What to do about positional parameters `found` that should be `sizes`."""
    if sorted(found) == sorted(sizes):
        return "put them in this order"
    renamed = [f"{name} to {size}" for name, size in zip(found, sizes, strict=False) if name != size]
    return " and ".join([*([f"rename {', '.join(renamed)}"] if renamed else []),
                         *([f"add {', '.join(sizes[len(found):])}"] if len(found) < len(sizes) else []),
                         *(["make the rest keyword-only"] if len(found) > len(sizes) else [])])
