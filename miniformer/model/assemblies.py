"""The assemblies by the name that `config.json` and `--model` give them."""

from __future__ import annotations

from miniformer.kernel.errors import UserError, did_you_mean

from .assembly import Assembly
from .seq2seq_transformer import Seq2SeqTransformer
from .transformer import Transformer

ASSEMBLIES: dict[str, type[Assembly]] = {cls.assembly: cls for cls in (Transformer, Seq2SeqTransformer)}


def assembly_of(name: str) -> type[Assembly]:
    """The class of an assembly.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ASSEMBLIES:
        raise UserError(f"there is no assembly {name!r}{did_you_mean(name, ASSEMBLIES)}; there are {', '.join(ASSEMBLIES)}")
    return ASSEMBLIES[name]


def assembly_for(has_source: bool) -> type[Assembly]:
    """The assembly for batches that have a source, or have none."""
    return next(cls for cls in ASSEMBLIES.values() if cls.has_source == has_source)
