"""Rotary position encoding, and ways to extend it to longer texts than a model was trained on.

Shapes: B batch, T query length, H heads, E head width, W pairs of elements that are rotated.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from miniformer.kernel.context import Role
from miniformer.kernel.interfaces import PositionEncoding


class Rotary(PositionEncoding):
    """Rotates pairs of query and key elements by angles that grow with position (Su 2021, arXiv:2104.09864).

    Element i is paired with element i + W of the 2W that are rotated, as in GPT-NeoX and Llama.

    Args:
        pct: part of each head that is rotated; at least two elements are.
        base: the longest wavelength is 2 pi base positions.
        scaling: how wavelengths are stretched to reach `factor` times as far: `linear`, all alike (Chen 2023,
            arXiv:2306.15595); `ntk`, by a larger base, so that the shortest stay (Peng 2023, arXiv:2309.00071, section
            3.1); `yarn`, those longer than the original length, the others less or not, and scores get larger (section 3);
            `llama3`, those longer than the original length, and less or not down to a quarter of it (Grattafiori 2024,
            arXiv:2407.21783).
        factor: how many times as far positions reach.
        original_length: positions that the model was trained on, for `yarn` and `llama3`; None: max_seq_len / factor.
    """

    extrapolates: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *,
                 pct: Annotated[float, Field(gt=0, le=1)] = 1.0,
                 base: Annotated[float, Field(gt=1)] = 10_000.0,
                 scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none",
                 factor: Annotated[float, Field(ge=1)] = 1.0,
                 original_length: Annotated[int | None, Field(ge=1)] = None) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        d_head = d_model // n_heads
        self.width, self.base = 2 * int(d_head * pct / 2), base
        self.scaling, self.factor = scaling, factor
        self.original_length = original_length or max_seq_len / factor
        if self.width < 2:
            raise ValueError(f"pct {pct} of a head of {d_head} elements (d_model {d_model} / n_heads {n_heads}) leaves no "
                             "pair to rotate")
        if scaling == "none" and factor != 1:
            raise ValueError(f"factor {factor} needs a scaling: linear, ntk, yarn or llama3")

    def precompute(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles_B1TW = (positions[..., None] * self.frequencies(positions.device))[:, None]
        # YaRN, equation 22: scores grow with the stretch, since more keys share the softmax; q and k have the root each
        scale = 0.1 * math.log(self.factor) + 1 if self.scaling == "yarn" else 1.0
        return angles_B1TW.cos() * scale, angles_B1TW.sin() * scale

    def rotate(self, x: Tensor, where: tuple[Tensor, Tensor], role: Role) -> Tensor:
        cos, sin = where[0].to(x.dtype), where[1].to(x.dtype)
        a, b, rest = x.tensor_split((self.width // 2, self.width), dim=-1)
        # (a + ib) e^(i angle): the product of a rotated query and key depends on the difference of their angles alone
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def frequencies(self, device: torch.device | str | None = None) -> Tensor:
        """`[W]`: by how many radians each pair turns per position."""
        pairs = self.width // 2
        if self.scaling == "ntk":  # the longest wavelength becomes `factor` times as long, the shortest stays
            return frequencies(pairs, self.base * self.factor ** (pairs / max(1, pairs - 1)), device)
        plain = frequencies(pairs, self.base, device)
        if self.scaling == "yarn":
            return plain * (1 - self._stretched(pairs, device) * (1 - 1 / self.factor))
        if self.scaling == "llama3":  # by how often a pair turns in the original length: once or less, up to four times
            kept_share = ((self.original_length * plain / (2 * math.pi) - 1) / 3).clamp(0, 1)
            return (1 - kept_share) * plain / self.factor + kept_share * plain
        return plain / self.factor

    def _stretched(self, pairs: int, device: torch.device | str | None) -> Tensor:
        """`[W]`: how far each pair is stretched: 0 if it turns 32 times or more in the original length, 1 if once or less."""

        def pair_that_turns(times: float) -> float:
            return pairs * math.log(self.original_length / (2 * math.pi * times)) / math.log(self.base)

        low = max(math.floor(pair_that_turns(32)), 0)
        high = min(math.ceil(pair_that_turns(1)), 2 * pairs - 1)
        return ((torch.arange(pairs, device=device) - low) / max(high - low, 0.001)).clamp(0, 1)


def frequencies(n: int, base: float, device: torch.device | str | None = None) -> Tensor:
    """`[n]` frequencies that fall geometrically from 1 to almost 1 / base."""
    return 1 / base ** (torch.arange(n, device=device, dtype=torch.float32) / n)


def angles(positions: Tensor, n: int, base: float) -> Tensor:
    """`[B, T] -> [B, T, n]`: positions times n frequencies."""
    return positions[..., None] * frequencies(n, base, positions.device)
