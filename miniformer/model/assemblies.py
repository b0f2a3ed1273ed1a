"""The assemblies of blocks: by the name that `config.json` and `--model` give them, and by what their batches have."""

from __future__ import annotations

from miniformer.kernel.errors import UserError
from miniformer.kernel.registry import current_registry

from .assembly import Assembly
from .seq2seq_transformer import Seq2SeqTransformer
from .transformer import Transformer


def assembly_of(name: str) -> type[Assembly]:
    """The class of an assembly.

    Raises:
        UserError: there is none of that name, or it is not one of blocks.
    """
    found = current_registry().load("assembly", name)
    if not issubclass(found, Assembly):
        raise UserError(f"assembly {name!r} can be inspected, but not trained or loaded: it does not subclass "
                        "miniformer.model.assembly.Assembly")
    return found


def assembly_for(has_source: bool) -> type[Assembly]:
    """The assembly for batches that have a source, or have none."""
    return Seq2SeqTransformer if has_source else Transformer
