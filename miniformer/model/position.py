"""Position encodings: none, those added to embeddings (sinusoidal, learned), those added to scores (ALiBi, T5)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from miniformer.kernel.interfaces import PositionEncoding

from .init import embedding
from .rotary import angles


class NoPosition(PositionEncoding):
    """No position encoding: a causal model still learns order from its mask (Kazemnejad 2023, arXiv:2305.19466)."""

    extrapolates: ClassVar[bool] = True


class Sinusoidal(PositionEncoding):
    """Fixed sines and cosines added to the embeddings (Vaswani 2017, arXiv:1706.03762).

    The paper multiplies embeddings by sqrt(D) first. Here the waves are divided by it instead, which keeps the ratio of both.

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


class ALiBi(PositionEncoding):
    """Scores fall linearly with distance, in each head at its own slope (Press 2022, arXiv:2108.12409).

    In an encoder the score falls in both directions.
    """

    extrapolates: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance_B1TS = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs()
        slopes_H = torch.tensor(slopes(self.n_heads), device=q_positions.device)
        return -slopes_H[:, None, None] * distance_B1TS


def slopes(n_heads: int) -> list[float]:
    """The slopes of ALiBi's heads: 2^(-8/n), 2^(-16/n), ..., if their number n is a power of two.

    Otherwise they are those of the next smaller power of two, then every other one of the next larger, as in the paper's code.
    """
    n = 2 ** int(math.log2(n_heads))
    return [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * (n_heads - n), 2)]


class T5Bias(PositionEncoding):
    """A learned bias for each head and bucket of distances, shared by all layers (Raffel 2020, arXiv:1910.10683).

    Half of the buckets hold one distance each, the others ranges that grow geometrically. In an encoder, half of all
    buckets are for keys later than the query.

    Args:
        n_buckets: rows of the table.
        max_distance: distances from here on share the last bucket.
    """

    extrapolates: ClassVar[bool] = True
    relative: ClassVar[bool] = True
    learns_bias: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *, n_buckets: Annotated[int, Field(ge=4)] = 32,
                 max_distance: Annotated[int, Field(ge=2)] = 128) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        if n_buckets % 2:
            raise ValueError(f"n_buckets {n_buckets} must be even, for two directions")
        if max_distance <= n_buckets // 2:
            raise ValueError(f"max_distance {max_distance} must be more than the {n_buckets // 2} distances that have a "
                             "bucket each")
        self.n_buckets, self.max_distance = n_buckets, max_distance
        self.table = nn.Embedding(n_buckets, n_heads)
        nn.init.normal_(self.table.weight, std=d_model ** -0.5)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        # positive where the key is earlier; later keys take the second half of the table
        back_BTS = q_positions[:, :, None] - k_positions[:, None, :]
        half = self.n_buckets // 2
        return self._rows(buckets(back_BTS.abs(), half, self.max_distance) + half * (back_BTS < 0))

    def causal_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        back_BTS = q_positions[:, :, None] - k_positions[:, None, :]
        return self._rows(buckets(back_BTS.clamp(min=0), self.n_buckets, self.max_distance))

    def _rows(self, buckets_BTS: Tensor) -> Tensor:
        bias_BTSH: Tensor = self.table(buckets_BTS)
        return bias_BTSH.permute(0, 3, 1, 2)


def buckets(distance: Tensor, n: int, max_distance: int) -> Tensor:
    """Sort distances into n buckets: those below n / 2 have one each, longer ones share by their logarithm."""
    exact = n // 2
    far = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact) * (n - exact)
    return torch.where(distance < exact, distance, (exact + far.long()).clamp(max=n - 1))
