"""Sizes of the models that are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder, and a batch that it is trained on; dropout is 0, and the head is tied to the token embedding.

    Attributes:
        name: as it is asked for.
        batch_size, length: rows of a training batch, and tokens of a row.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    batch_size: int
    length: int

    @property
    def d_ff(self) -> int:
        """Width of a feed-forward of two matrices, as in GPT-2."""
        return 4 * self.d_model

    @property
    def gated_d_ff(self) -> int:
        """Width of one of three matrices, as in Llama; both have as many parameters."""
        return 8 * self.d_model // 3


SIZES = {size.name: size for size in (
    Size("tiny", 1, 48, 2, 256, 2, 16),  # what --quick measures
    Size("XS", 2, 96, 4, 512, 4, 32),  # about 5 ms a step
    Size("S", 6, 384, 6, 8192, 8, 256),
    Size("M", 12, 768, 12, 50304, 2, 512),
    Size("124M", 12, 768, 12, 50304, 16, 1024),  # for a GPU: GPT-2 small and medium
    Size("350M", 24, 1024, 16, 50304, 8, 1024),
)}
