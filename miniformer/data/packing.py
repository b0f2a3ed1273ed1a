"""Documents packed end to end into rows of full length: no padding but at the very end.

A document that does not fit goes on in the next row, where it counts as a document of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from miniformer.kernel.task import Example


class PackedRows(Dataset[Example]):
    """Rows of `length` tokens cut from the stream of all examples' tokens.

    Each row is an `Example` with `documents` (numbered from 1 in the row, 0 is padding) and `following` (the next token of
    the same document, or -1), so that no prediction is lost where a row ends.
    """

    def __init__(self, examples: Sequence[Example], length: int) -> None:
        self.length = length
        self.stream = np.concatenate([np.asarray(example.tokens, dtype=np.int32) for example in examples])
        self.starts = np.cumsum([0] + [len(example.tokens) for example in examples])

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
        return Example(tokens=torch.from_numpy(np.where(real, tokens[:-1], 0)),
                       documents=torch.from_numpy(np.where(real, which[:-1] - which[0] + 1, 0)),
                       following=torch.from_numpy(np.where(real, following, -1)))
