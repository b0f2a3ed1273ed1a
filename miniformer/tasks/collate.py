"""Makes the rows of a batch from examples: pads them, or takes rows that are packed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Batch, Example, Source, Tokenizer


def padded(examples: Sequence[Example]) -> tuple[Tensor, Layout]:
    """Token ids `[B, T]` or features `[B, T, F]`, padded on the right with 0, and their layout."""
    return padded_rows([example.tokens for example in examples])


def padded_rows(rows: Sequence[Sequence[int] | Tensor], fill: int = 0) -> tuple[Tensor, Layout]:
    """Rows of numbers as `[B, T]`, or of vectors as `[B, T, F]`, padded on the right with `fill`, and their layout."""
    tensors = [torch.as_tensor(row) for row in rows]
    return (pad_sequence(tensors, batch_first=True, padding_value=fill),
            Layout.from_lengths([len(tensor) for tensor in tensors]))


def targets(**columns: Sequence[Any]) -> dict[str, Tensor]:
    """Each column of targets as a tensor. A column with None in it is left out: at prediction no targets are known."""
    return {name: torch.as_tensor(values) for name, values in columns.items() if not any(v is None for v in values)}


def with_source(examples: Sequence[Example]) -> Batch:
    """The batch of examples that have a source, for an encoder-decoder.

    The decoder reads all tokens of a target but the last. The batch's target `following` is the token after each of them, or
    -1. At prediction the target is not known: it is the start token alone, and nothing follows it.
    """
    sources = [example.source for example in examples if example.source is not None]
    tokens, layout = padded_rows([example.tokens[:max(1, len(example.tokens) - 1)] for example in examples])
    following, _ = padded_rows([example.tokens[1:] if len(example.tokens) > 1 else [-1] for example in examples], fill=-1)
    return Batch(tokens, layout, {"following": following}, Source(*padded_rows(sources)))


def nothing_to_write(examples: Sequence[Example]) -> str | None:
    """Why none of the examples has a target, of which the first token is the start token; None if one has."""
    return None if any(len(example.tokens) > 1 for example in examples) else "no target has a token to predict"


def written(model: Any, batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """The text that the model writes for each row's source, greedily, up to the end token or `max_seq_len` tokens."""
    assert batch.source is not None
    eos_id = end_of(model, tokenizer)
    rows = model.generate(batch.source.inputs, model.config.max_seq_len, do_sample=False, eos_id=eos_id,
                          layout=batch.source.layout).tolist()
    return [tokenizer.decode(row[:row.index(eos_id)] if eos_id in row else row) for row in rows]


def start_of(tokenizer: Tokenizer) -> int:
    """The token with which a decoder's text starts: the tokenizer's start token, or padding where it has none."""
    return tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id


def end_of(model: Any, tokenizer: Tokenizer) -> int | None:
    """The token that ends what a model writes: the model's own, or the tokenizer's where the config names no token of it."""
    eos_id: int | None = model.config.eos_id
    return tokenizer.eos_id if eos_id is None or eos_id >= model.config.vocab_size else eos_id


def bytes_of(counts: Sequence[Sequence[int] | Tensor | None]) -> dict[str, Tensor]:
    """The target `bytes` `[B, T]`: how many bytes of text each predicted token stands for; none where a row does not say it."""
    known = [torch.as_tensor(row) for row in counts if row is not None]
    return {"bytes": pad_sequence(known, batch_first=True)} if known and len(known) == len(counts) else {}


def packed(rows: Sequence[Example]) -> tuple[Tensor, Layout, Tensor]:
    """Token ids `[B, T]` of packed rows, their layout, and the token that follows each one in its document, or -1."""
    documents = torch.stack([row.documents for row in rows if row.documents is not None])
    one_each = int(documents.max()) <= 1  # one document in each row: then no mask between documents is needed
    layout = replace(Layout.from_documents(documents), padded=not bool(documents.all()), packed=not one_each,
                     aligned=one_each)
    return (torch.stack([torch.as_tensor(row.tokens) for row in rows]), layout,
            torch.stack([row.following for row in rows if row.following is not None]))
