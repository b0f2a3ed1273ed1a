"""Rows of a memory, the output of an encoder that a decoder looks at: taken out, and put together."""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.kernel.context import Memory
from miniformer.kernel.layout import latest


def rows_of(memory: Memory, index: Tensor) -> Memory:
    """The rows of a memory that `index` `[N]` names, in its order."""
    return Memory(memory.hidden[index], memory.layout.rows(index))


def stack_memories(memory: Memory, other: Memory) -> Memory:
    """The rows of both memories; the shorter memory is padded on the left."""
    columns = max(memory.layout.shape[1], other.layout.shape[1])
    hidden = torch.cat([latest(part.hidden, 1, columns) for part in (memory, other)])
    return Memory(hidden, memory.layout.stack_rows(other.layout, columns))
