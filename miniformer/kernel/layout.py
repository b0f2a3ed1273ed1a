"""Where every token of a [B, T] grid sits: the one language for padding, packing and decoding.

Shapes: B batch, T columns. Document 0 is padding; documents 1, 2, ... are the texts that share a row, each
one run of columns, padding aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Position and document of each token, with facts that let a kernel take a faster way.

    The facts are Python values set by whoever builds the batch. They are never computed from tensors in a forward: that
    would synchronise a GPU and break a compiled graph. A fact set to its cautious value costs speed, never correctness.

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
        """One unpadded document in each row, its first token at position `start`."""
        positions = torch.arange(start, start + length, device=device).expand(batch, length)
        return cls(positions, torch.ones_like(positions), padded=False, packed=False, aligned=start == 0)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], length: int | None = None,
                     side: Literal["left", "right"] = "right") -> Layout:
        """One document in each row, padded on `side` up to `length` (the longest row's, unless given)."""
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
        """`[B, T]` document numbers, each document one run of columns; positions restart where the number changes."""
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
        """`[B, T]` bool, True where the token is not padding."""
        return self.documents != 0

    def first(self) -> Tensor:
        """`[B]`, the column of each row's first token that is not padding."""
        return self.real.long().argmax(dim=1)

    def last(self) -> Tensor:
        """`[B]`, the column of each row's last token that is not padding."""
        return self.shape[1] - 1 - self.real.long().flip(1).argmax(dim=1)

    def next_position(self) -> Layout:
        """`[B, 1]`, where the next token of each row's last document goes."""
        document = self.documents.amax(dim=1, keepdim=True)
        position = torch.where(self.documents == document, self.positions, -1).amax(dim=1, keepdim=True) + 1
        return Layout(position, document, self.padded, packed=False, aligned=False)

    def append_columns(self, later: Layout) -> Layout:
        """The columns of `later` put after these."""
        return Layout(torch.cat([self.positions, later.positions], dim=1),
                      torch.cat([self.documents, later.documents], dim=1),
                      self.padded or later.padded, self.packed or later.packed, aligned=False)

    def stack_rows(self, other: Layout, columns: int) -> Layout:
        """The rows of both, of each the latest `columns` columns, after padding where there are fewer."""
        parts = [(latest(one.positions, 1, columns), latest(one.documents, 1, columns)) for one in (self, other)]
        positions, documents = (torch.cat(both) for both in zip(*parts, strict=True))
        padded = self.padded or other.padded or self.shape[1] < columns or other.shape[1] < columns
        return Layout(positions, documents, padded, self.packed or other.packed, aligned=False)

    def rows(self, index: Tensor) -> Layout:
        """The rows that `index` `[N]` picks, in its order."""
        return replace(self, positions=self.positions[index], documents=self.documents[index])

    def columns(self, stop: int) -> Layout:
        """The first `stop` columns."""
        return replace(self, positions=self.positions[:, :stop], documents=self.documents[:, :stop])

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return replace(self, positions=self.positions.to(device), documents=self.documents.to(device))


def latest(tensor: Tensor, dim: int, count: int) -> Tensor:
    """The last `count` elements along a dimension, after zeros where there are fewer."""
    kept = tensor.narrow(dim, max(0, tensor.shape[dim] - count), min(count, tensor.shape[dim]))
    missing = list(kept.shape)
    missing[dim] = count - kept.shape[dim]
    return kept if missing[dim] == 0 else torch.cat([kept.new_zeros(missing), kept], dim=dim)
