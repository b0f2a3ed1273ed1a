"""Position encodings: `PlainRotary` and `PlainBias` are as they should be, every other class has one fault."""

from typing import ClassVar

import torch
from torch import nn

from miniformer.kernel import PositionEncoding


class PlainRotary(PositionEncoding):
    """Turns element i with element i + W, as it should be."""

    kind: ClassVar[str] = "position"
    extrapolates = True
    relative = True

    def angles(self, positions):
        width = self.d_model // self.n_heads // 2
        frequencies = 100.0 ** -(torch.arange(width, device=positions.device) / width)
        return (positions[..., None] * frequencies)[:, None]

    def precompute(self, positions):
        angles = self.angles(positions)
        return angles.cos(), angles.sin()

    def rotate(self, x, where, role):
        cos, sin = (one.to(x.dtype) for one in where)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class PairsNeighboursByHalves(PlainRotary):
    """Elements are paired as neighbours, angles laid out by halves."""

    caught_by = "differences-decide"

    def rotate(self, x, where, role):
        cos, sin = (one.repeat(1, 1, 1, 2).to(x.dtype) for one in where)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin


class SinesOfAnotherAngle(PlainRotary):
    """cos and sin are not of one angle, so vectors change their length."""

    caught_by = "rotation-keeps-lengths"

    def precompute(self, positions):
        return self.angles(positions).cos(), self.angles(positions + 1).sin()


class TurnsKeysTheOtherWay(PlainRotary):
    """Keys are turned back instead of forth."""

    caught_by = "differences-decide"

    def rotate(self, x, where, role):
        return super().rotate(x, where if role == "q" else (where[0], -where[1]), role)


class CountsColumns(PlainRotary):
    """Takes the column for the position."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return super().precompute(torch.arange(positions.shape[1]).expand_as(positions))


class CountsColumnsInTraining(PlainRotary):
    """Takes the column for the position, in training."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return CountsColumns.precompute(self, positions) if self.training else super().precompute(positions)


class CountsColumnsOfLongRows(PlainRotary):
    """Long rows are told places from a table, by column."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return CountsColumns.precompute(self, positions) if positions.shape[1] > 16 else super().precompute(positions)


class ComputesAnglesInTheModelsPrecision(PlainRotary):
    """A table in the model's dtype, which in bfloat16 does not tell 3000 from 3001."""

    caught_by = "far-places-survive-low-precision"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        width = d_model // n_heads // 2
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(width) / width))

    def angles(self, positions):
        return (positions[..., None].to(self.frequencies.dtype) * self.frequencies)[:, None]


class TurnsNothing(PlainRotary):
    """An integer division leaves every frequency 0."""

    caught_by = "tells-places-apart"

    def angles(self, positions):
        return super().angles(positions) // 10_000


class EndsBeforeItSays(PlainRotary):
    """Says that it goes on for ever, and has a table of `max_seq_len` rows."""

    caught_by = "ends-as-declared"

    def angles(self, positions):
        return super().angles(torch.arange(self.max_seq_len)[None])[0, 0][positions][:, None]


class PlainBias(PositionEncoding):
    """A bias that falls with distance, as it should be."""

    kind: ClassVar[str] = "position"
    extrapolates = True
    relative = True

    def bias(self, q_positions, k_positions):
        distance = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs()
        return -0.1 * distance * torch.arange(1, self.n_heads + 1, device=distance.device)[:, None, None]


class ForgetsTheHeads(PlainBias):
    """`[T, S]`, which is spread over batch and heads without a word."""

    caught_by = "hooks-have-their-shapes"

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions)[0, 0]


class HidesByBias(PlainBias):
    """Minus infinity in a bias does a mask's work."""

    caught_by = "hooks-have-their-shapes"

    def bias(self, q_positions, k_positions):
        bias = super().bias(q_positions, k_positions)
        return bias.masked_fill(bias < -0.2, -torch.inf)


class HangsOnTheKeysPlace(PlainBias):
    """A bias by where the key is, declared to be relative."""

    caught_by = "differences-decide"

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions) - 0.1 * k_positions[:, None, None, :]


class LearnsInSecret(PlainBias):
    """Its bias has a parameter, and it does not say so."""

    caught_by = "says-whether-its-bias-learns"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.slope = nn.Parameter(torch.ones(n_heads))

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions) * self.slope[:, None, None]


class AbilityWithoutProof(PlainBias):
    """Declares that its bias learns, which it cannot show: it has none."""

    caught_by = "declared-abilities-are-checked"
    learns_bias = True
    bias = PositionEncoding.bias
