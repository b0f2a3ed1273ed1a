"""Position encodings: `PlainRotary` and `PlainBias` are correct, every other class has one fault."""

from typing import ClassVar

import torch
from torch import nn

from miniformer.kernel import PositionEncoding


class PlainRotary(PositionEncoding):
    """Correct: rotates element i with element i + W."""

    kind: ClassVar[str] = "position"
    extrapolates = True
    relative = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.require_pairs(d_model // n_heads)

    def require_pairs(self, width):
        if width % 2:
            raise ValueError(f"it turns pairs of elements, and a head has {width}")

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
    """Uses cos and sin of different angles, so vectors change their length."""

    caught_by = "rotation-keeps-lengths"

    def precompute(self, positions):
        return self.angles(positions).cos(), self.angles(positions + 1).sin()


class TurnsKeysTheOtherWay(PlainRotary):
    """Rotates keys in the opposite direction."""

    caught_by = "differences-decide"

    def rotate(self, x, where, role):
        return super().rotate(x, where if role == "q" else (where[0], -where[1]), role)


class CountsColumns(PlainRotary):
    """Takes the column for the position."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return PlainRotary.precompute(self, torch.arange(positions.shape[1]).expand_as(positions))


class CountsColumnsInTraining(PlainRotary):
    """Takes the column for the position, in training."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return CountsColumns.precompute(self, positions) if self.training else super().precompute(positions)


class CountsColumnsOfLongRows(PlainRotary):
    """Takes the column for the position, in long rows."""

    caught_by = "asks-positions-only"

    def precompute(self, positions):
        return CountsColumns.precompute(self, positions) if positions.shape[1] > 16 else super().precompute(positions)


class ComputesAnglesInTheModelsPrecision(PlainRotary):
    """Angles in the model's dtype: in bfloat16 those of 3000 and 3001 are the same."""

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
    """Declares that it extrapolates, and has a table of `max_seq_len` rows."""

    caught_by = "ends-as-declared"

    def angles(self, positions):
        return super().angles(torch.arange(self.max_seq_len)[None])[0, 0][positions][:, None]


class PlainBias(PositionEncoding):
    """Correct: a bias that falls with distance."""

    kind: ClassVar[str] = "position"
    extrapolates = True
    relative = True

    def bias(self, q_positions, k_positions):
        distance = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs()
        return -0.1 * distance * torch.arange(1, self.n_heads + 1, device=distance.device)[:, None, None]


class ForgetsTheHeads(PlainBias):
    """A bias `[T, S]`, which is broadcast over batch and heads without an error."""

    caught_by = "hooks-have-their-shapes"

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions)[0, 0]


class HidesByBias(PlainBias):
    """Hides tokens by minus infinity in a bias, which is the work of a mask."""

    caught_by = "hooks-have-their-shapes"

    def bias(self, q_positions, k_positions):
        bias = super().bias(q_positions, k_positions)
        return bias.masked_fill(bias < -0.2, -torch.inf)


class HangsOnTheKeysPlace(PlainBias):
    """A bias that depends on the position of the key, declared to be relative."""

    caught_by = "differences-decide"

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions) - 0.1 * k_positions[:, None, None, :]


class LearnsInSecret(PlainBias):
    """Its bias has a parameter, and the class does not declare it."""

    caught_by = "says-whether-its-bias-learns"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.slope = nn.Parameter(torch.ones(n_heads))

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions, k_positions) * self.slope[:, None, None]


class AbilityWithoutProof(PlainBias):
    """Declares that its bias learns, and has no bias."""

    caught_by = "declared-abilities-are-checked"
    learns_bias = True
    bias = PositionEncoding.bias
