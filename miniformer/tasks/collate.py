"""How examples become the rows of a batch: padded one by one, or packed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Example


def padded(examples: Sequence[Example]) -> tuple[Tensor, Layout]:
    """Token ids `[B, T]` or features `[B, T, F]`, padded on the right with 0, and their layout."""
    rows = [torch.as_tensor(example.tokens) for example in examples]
    return pad_sequence(rows, batch_first=True), Layout.from_lengths([len(row) for row in rows])


def targets(**columns: Sequence[Any]) -> dict[str, Tensor]:
    """Tensors of the targets that are known: a column with None in it, as of what is to be predicted, is left out."""
    return {name: torch.as_tensor(values) for name, values in columns.items() if not any(v is None for v in values)}


def packed(rows: Sequence[Example]) -> tuple[Tensor, Layout, Tensor]:
    """Token ids `[B, T]`, their layout, and the token that follows each in its document, or -1, of packed rows."""
    documents = torch.stack([row.documents for row in rows if row.documents is not None])
    one_each = int(documents.max()) <= 1
    layout = replace(Layout.from_documents(documents), padded=not bool(documents.all()), packed=not one_each,
                     aligned=one_each)
    return (torch.stack([torch.as_tensor(row.tokens) for row in rows]), layout,
            torch.stack([row.following for row in rows if row.following is not None]))
