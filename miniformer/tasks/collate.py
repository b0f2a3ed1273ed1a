"""How examples become the rows of a batch: padded one by one, or packed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Example


def padded(examples: Sequence[Example]) -> tuple[Tensor, Layout]:
    """Token ids `[B, T]`, padded on the right with 0, and their layout."""
    layout = Layout.from_lengths([len(example.tokens) for example in examples])
    tokens = torch.zeros(layout.shape, dtype=torch.long)
    for row, example in zip(tokens, examples, strict=True):
        row[:len(example.tokens)] = torch.as_tensor(example.tokens)
    return tokens, layout


def packed(rows: Sequence[Example]) -> tuple[Tensor, Layout, Tensor]:
    """Token ids `[B, T]`, their layout, and the token that follows each in its document, or -1, of packed rows."""
    documents = torch.stack([row.documents for row in rows if row.documents is not None])
    one_each = int(documents.max()) <= 1
    layout = replace(Layout.from_documents(documents), padded=not bool(documents.all()), packed=not one_each,
                     aligned=one_each)
    return (torch.stack([torch.as_tensor(row.tokens) for row in rows]), layout,
            torch.stack([row.following for row in rows if row.following is not None]))
