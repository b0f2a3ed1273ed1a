"""Position encodings: none, sinusoidal and learned (added to embeddings), rotary (applied to queries and keys)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from miniformer.kernel.context import Role
from miniformer.kernel.interfaces import PositionEncoding

from .init import embedding


class NoPosition(PositionEncoding):
    """No position encoding: a causal model can still tell order from its mask (Kazemnejad 2023, arXiv:2305.19466)."""

    extrapolates: ClassVar[bool] = True


class Sinusoidal(PositionEncoding):
    """Fixed sines and cosines added to the embeddings (Vaswani 2017, arXiv:1706.03762).

    The paper multiplies embeddings by sqrt(D) first; here the waves are divided by it instead, which says the same.

    Args:
        base: the longest wavelength is 2 pi base positions.
    """

    extrapolates: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *,
                 base: Annotated[float, Field(gt=1)] = 10_000.0) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.base = base

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        angles_BTW = angles(positions, (self.d_model + 1) // 2, self.base)
        waves_BTWx2 = torch.stack([angles_BTW.sin(), angles_BTW.cos()], dim=-1)
        waves_BTD = waves_BTWx2.flatten(-2)[..., :self.d_model]  # [B, T, W, 2] -> [B, T, D]
        return x + (waves_BTD * self.d_model ** -0.5).to(x.dtype)


class Learned(PositionEncoding):
    """A learned vector for each position, added to the embeddings (Devlin 2018); ends at `max_seq_len`."""

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.table = embedding(max_seq_len, d_model)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)


class Rotary(PositionEncoding):
    """Rotates pairs of query and key elements by angles that grow with position (Su 2021, arXiv:2104.09864).

    Element i is paired with element i + R/2 of the R that are rotated, as in GPT-NeoX and Llama.

    Args:
        pct: part of each head that is rotated, at least two elements.
        base: the longest wavelength is 2 pi base positions.
    """

    extrapolates: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *,
                 pct: Annotated[float, Field(gt=0, le=1)] = 1.0,
                 base: Annotated[float, Field(gt=1)] = 10_000.0) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        d_head = d_model // n_heads
        self.width, self.base = 2 * int(d_head * pct / 2), base
        if self.width < 2:
            raise ValueError(f"pct {pct} of a head of {d_head} elements (d_model {d_model} / n_heads {n_heads}) leaves no "
                             "pair to rotate")

    def prepare(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles_B1TW = angles(positions, self.width // 2, self.base)[:, None]
        return angles_B1TW.cos(), angles_B1TW.sin()

    def rotate(self, x: Tensor, where: tuple[Tensor, Tensor], role: Role) -> Tensor:
        cos, sin = where[0].to(x.dtype), where[1].to(x.dtype)
        a, b, rest = x.tensor_split((self.width // 2, self.width), dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def angles(positions: Tensor, n: int, base: float) -> Tensor:
    """`[B, T] -> [B, T, n]`: positions times frequencies that fall geometrically from 1 to almost 1 / base."""
    frequencies = base ** -(torch.arange(n, device=positions.device, dtype=torch.float32) / n)
    return positions[..., None] * frequencies
