"""Documents packed end to end into rows of full length: no padding but at the very end.

A document that does not fit continues in the next row, where it counts as a document of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch.utils.data import Dataset

from miniformer.kernel.task import Example


class Documents(Sequence[Example]):
    """Examples that are tokens and nothing else, held as one stream: a few bytes a token instead of forty.

    Args:
        stream: the tokens of all documents, end to end.
        starts: where each document starts, and at last where the stream ends.
        byte_counts: the bytes that each token stands for; None: the examples do not say it.
    """

    def __init__(self, stream: np.ndarray, starts: np.ndarray, byte_counts: np.ndarray | None = None) -> None:
        self.stream, self.starts, self.byte_counts = stream, starts, byte_counts

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Documents:
        """The stream of some examples' tokens and of their bytes, without anything else that they hold."""
        examples = list(examples)
        counts = [np.asarray(example.byte_counts, dtype=np.int32) for example in examples if example.byte_counts is not None]
        return cls.joined([np.asarray(example.tokens, dtype=np.int32) for example in examples],
                          counts if counts and len(counts) == len(examples) else None)

    @classmethod
    def joined(cls, parts: Sequence[np.ndarray], byte_counts: Sequence[np.ndarray] | None = None) -> Documents:
        """The stream of documents that are arrays of int32, and of their bytes."""
        def stream(parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate([np.zeros(0, np.int32), *parts])

        return cls(stream(parts), np.cumsum([0, *map(len, parts)]), None if byte_counts is None else stream(byte_counts))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        lengths: list[int] = np.diff(self.starts).tolist()
        return lengths

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        part = slice(self.starts[place], self.starts[place + 1])
        return Example(self.stream[part].tolist(),
                       byte_counts=None if self.byte_counts is None else self.byte_counts[part].tolist())


def gathered(examples: Iterable[Example]) -> Sequence[Example]:
    """The examples in memory: as `Documents` if each is a list of tokens and nothing else, otherwise as a list."""
    parts: list[np.ndarray] = []
    byte_counts: list[np.ndarray] = []
    examples = iter(examples)
    for example in examples:
        counted = len(byte_counts) + (example.byte_counts is not None)
        if not _is_bare(example) or counted not in (0, len(parts) + 1):
            return [*Documents.joined(parts, byte_counts or None), example, *examples]
        parts.append(np.asarray(example.tokens, dtype=np.int32))
        if example.byte_counts is not None:
            byte_counts.append(np.asarray(example.byte_counts, dtype=np.int32))
    return Documents.joined(parts, byte_counts or None)


def _is_bare(example: Example) -> bool:
    return isinstance(example.tokens, list) and not example.draw and all(
        value is None for value in (example.target, example.documents, example.following, example.source))


class PackedRows(Dataset[Example]):
    """Rows of `length` tokens cut from the stream of all examples' tokens.

    Each row is an `Example` with `documents` (numbered from 1 in the row, 0 is padding) and `following` (the next token of
    the same document, or -1), so that no prediction is lost where a row ends. `byte_counts` are those of `following`.
    """

    def __init__(self, examples: Sequence[Example], length: int) -> None:
        documents = examples if isinstance(examples, Documents) else Documents.of(examples)
        self.stream, self.starts, self.length = documents.stream, documents.starts, length
        self.byte_counts = documents.byte_counts

    def __len__(self) -> int:
        return -(-len(self.stream) // self.length)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        columns = np.arange(index * self.length, (index + 1) * self.length + 1)
        which = np.searchsorted(self.starts, columns, side="right")  # past the last document where the stream has ended
        tokens = self.stream.take(columns, mode="clip").astype(np.int64)
        following = np.where(which[1:] == which[:-1], tokens[1:], -1)
        real = columns[:-1] < len(self.stream)
        counts = None if self.byte_counts is None else self.byte_counts.take(columns[1:], mode="clip").astype(np.int64)
        return Example(tokens=torch.from_numpy(np.where(real, tokens[:-1], 0)),
                       documents=torch.from_numpy(np.where(real, which[:-1] - which[0] + 1, 0)),
                       following=torch.from_numpy(np.where(real, following, -1)),
                       byte_counts=None if counts is None else torch.from_numpy(np.where(real & (following >= 0), counts, 0)))
