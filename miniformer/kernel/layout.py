"""Where every token of a [B, T] grid sits. Padding, packing and decoding are all said in these terms.

Shapes: B batch, T columns. Document 0 is padding; documents 1, 2, ... are the texts that share a row. Each document is one
unbroken run of columns, padding aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .renamed import KeepsOldNames


@dataclass(frozen=True, slots=True)
class Layout(KeepsOldNames):
    """Position and document of each token, with three facts that allow faster attention.

    The facts are Python values, set by the code that builds the batch. They are never computed from tensors in a forward, which
    would synchronise a GPU and break a compiled graph. The defaults are cautious: they cost speed, never correctness.

    Attributes:
        positions: `[B, T]` int64, the token's position in its own document (restarts at 0 in each).
        documents: `[B, T]` int64, the token's document; 0 is padding.
        padded: some token may be padding.
        packed: some row may hold more than one document.
        aligned: every token that is not padding sits at the column of its position.
    """

    positions: Tensor
    documents: Tensor
    padded: bool = True
    packed: bool = True
    aligned: bool = False

    @classmethod
    def full(cls, batch: int, length: int, *, start: int = 0, device: torch.device | str | None = None) -> Layout:
        """Make rows of one unpadded document each, whose first token is at position `start`."""
        positions = torch.arange(start, start + length, device=device).expand(batch, length)
        return cls(positions, torch.ones_like(positions), padded=False, packed=False, aligned=start == 0)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], length: int | None = None,
                     side: Literal["left", "right"] = "right") -> Layout:
        """Make rows of one document each, padded on `side` to `length` columns, by default to the longest row."""
        length = max(lengths) if length is None else length
        if max(lengths) > length:
            raise ValueError(f"a row of {max(lengths)} tokens does not fit into {length} columns")
        columns, counts = torch.arange(length), torch.tensor(lengths)[:, None]
        positions = columns - (length - counts if side == "left" else 0)
        real = (positions >= 0) & (positions < counts)
        padded = any(n != length for n in lengths)
        return cls(torch.where(real, positions, 0), real.long(), padded, packed=False,
                   aligned=side == "right" or not padded)

    @classmethod
    def from_documents(cls, documents: Tensor) -> Layout:
        """Make the layout of packed rows from `[B, T]` document numbers; positions restart where the number changes."""
        columns = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        changes = torch.ones_like(documents, dtype=torch.bool)
        changes[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = torch.where(changes, columns, 0).cummax(dim=1).values
        return cls(torch.where(documents == 0, 0, columns - starts), documents)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.positions.shape[0], self.positions.shape[1]

    @property
    def real(self) -> Tensor:
        """`[B, T]` bool: True where the token is not padding."""
        return self.documents != 0

    def first(self) -> Tensor:
        """`[B]`: the column of each row's first token that is not padding."""
        return self.real.long().argmax(dim=1)

    def last(self) -> Tensor:
        """`[B]`: the column of each row's last token that is not padding."""
        return self.shape[1] - 1 - self.real.long().flip(1).argmax(dim=1)

    def next_position(self) -> Layout:
        """The layout `[B, 1]` of one more token in each row, which continues the row's last document."""
        document = self.documents.amax(dim=1, keepdim=True)
        position = torch.where(self.documents == document, self.positions, -1).amax(dim=1, keepdim=True) + 1
        return Layout(position, document, self.padded, packed=False, aligned=False)

    def append_columns(self, later: Layout) -> Layout:
        """Put the columns of `later` after these."""
        return Layout(torch.cat([self.positions, later.positions], dim=1),
                      torch.cat([self.documents, later.documents], dim=1),
                      self.padded or later.padded, self.packed or later.packed, aligned=False)

    def stack_rows(self, other: Layout, columns: int) -> Layout:
        """Put the rows of `other` below these, each cut to its last `columns` columns or padded before them to as many."""
        positions = torch.cat([latest(layout.positions, 1, columns) for layout in (self, other)])
        documents = torch.cat([latest(layout.documents, 1, columns) for layout in (self, other)])
        padded = self.padded or other.padded or self.shape[1] < columns or other.shape[1] < columns
        return Layout(positions, documents, padded, self.packed or other.packed, aligned=False)

    def rows(self, index: Tensor) -> Layout:
        """Pick the rows that `index` `[N]` names, in its order."""
        return replace(self, positions=self.positions[index], documents=self.documents[index])

    def columns(self, stop: int) -> Layout:
        """Keep the first `stop` columns."""
        return replace(self, positions=self.positions[:, :stop], documents=self.documents[:, :stop])

    def to(self, device: torch.device | str) -> Layout:
        """Copy the layout to another device."""
        return replace(self, positions=self.positions.to(device), documents=self.documents.to(device))


def latest(tensor: Tensor, dim: int, count: int) -> Tensor:
    """Cut a tensor to its last `count` elements along a dimension; a shorter one gets zeros before them."""
    tail = tensor.narrow(dim, max(0, tensor.shape[dim] - count), min(count, tensor.shape[dim]))
    if tail.shape[dim] == count:
        return tail
    missing = list(tail.shape)
    missing[dim] = count - tail.shape[dim]
    return torch.cat([tail.new_zeros(missing), tail], dim=dim)
