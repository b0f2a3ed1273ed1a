"""Which assembly of blocks a model is: by its name in `config.json` and `--model`, or by what its batches have."""

from __future__ import annotations

from .assembly import BlockAssembly, assembly_of
from .seq2seq_transformer import Seq2SeqTransformer
from .transformer import Transformer

__all__ = ["assembly_for", "assembly_of"]


def assembly_for(has_source: bool) -> type[BlockAssembly]:
    """The built-in assembly for batches with a source (an encoder-decoder), or for batches without."""
    return Seq2SeqTransformer if has_source else Transformer
