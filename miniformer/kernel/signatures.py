"""What a component's constructor takes: sizes are its positional parameters, options its keyword-only ones."""

from __future__ import annotations

import inspect


def signature_chain(cls: type) -> list[type]:
    """The classes whose constructors make up that of `cls`: its own and, while they take `**options`, its parents'."""
    chain = []
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            chain.append(owner)
            kinds = {p.kind for p in inspect.signature(vars(owner)["__init__"]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return chain


def sizes_of(cls: type) -> tuple[str, ...]:
    """The names of the positional parameters of a component's constructor."""
    owners = signature_chain(cls)
    if not owners:
        return ()
    parameters = list(inspect.signature(vars(owners[0])["__init__"]).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional)
