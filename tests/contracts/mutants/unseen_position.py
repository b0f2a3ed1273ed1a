"""Position encodings that were written before the properties that have to find them."""

from typing import ClassVar

import torch
from torch import nn

from miniformer.kernel import PositionEncoding

from .position import PlainBias, PlainRotary

# number 2: history


class RemembersTheLongestText(PlainRotary):
    """Angles shrink once a text was longer than `max_seq_len`, and stay so for short ones (transformers#25306)."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.longest = max_seq_len

    def angles(self, positions):
        self.longest = max(self.longest, int(positions.max()) + 1)
        return super().angles(positions) * self.max_seq_len / self.longest


class KeepsItsTableInTheFirstDtype(PlainRotary):
    """The table of sines is made in the precision of the first call, and used in every other (as in sglang#33117)."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.table = None

    def precompute(self, positions):
        return positions

    def rotate(self, x, where, role):
        size = int(where.max()) + 1
        if self.table is None or len(self.table[0]) < size:
            places = torch.arange(max(size, self.max_seq_len), device=x.device)[None]
            self.table = tuple(one[0, 0].to(x.dtype) for one in super().precompute(places))
        return super().rotate(x, tuple(one[where][:, None] for one in self.table), role)


class KeepsABiasByShape(PlainBias):
    """A bias is kept by its shape: left padding and packed rows get that of an earlier batch."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.kept = {}

    def bias(self, q_positions, k_positions):
        shapes = q_positions.shape, k_positions.shape
        if shapes not in self.kept:
            self.kept[shapes] = super().bias(q_positions, k_positions)
        return self.kept[shapes]


class KeepsAnglesOfInferenceMode(PlainRotary):
    """The last angles are kept: those made in inference mode end training with an error (flash-attention#299)."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.kept = None

    def precompute(self, positions):
        return positions

    def rotate(self, x, where, role):
        if self.kept is None or self.kept[1][0].dtype != x.dtype or not torch.equal(self.kept[0], where):
            self.kept = where, tuple(one.to(x.dtype) for one in super().precompute(where))
        return super().rotate(x, self.kept[1], role)


# number 4: sizes


class OddRotary(PlainRotary):
    """Correct: the last element of a head of odd width is not turned."""

    def require_pairs(self, width):
        pass

    def rotate(self, x, where, role):
        even = x.shape[-1] - x.shape[-1] % 2
        return torch.cat([super().rotate(x[..., :even], where, role), self.rest(x[..., even:], where)], dim=-1)

    def rest(self, x, where):
        return x


class LosesTheLastElementOfOddHeads(OddRotary):
    """The last element of a head of odd width does not come back."""

    caught_by = "hooks-have-their-shapes"

    def rest(self, x, where):
        return x[..., :0]


class TurnsTheOddElementAlone(OddRotary):
    """The last element of a head of odd width is multiplied by a cosine that has no sine."""

    caught_by = "rotation-keeps-lengths"

    def rest(self, x, where):
        return x * where[0][..., :1].to(x.dtype)


class LeavesHeadsWithoutBias(PlainBias):
    """Slopes are made for a power of two: of three heads the third has none, of seven the last three."""

    caught_by = "tells-places-apart"

    def bias(self, q_positions, k_positions):
        power = 1 << (self.n_heads.bit_length() - 1)
        served = torch.arange(self.n_heads, device=q_positions.device) < power
        return super().bias(q_positions, k_positions) * served[:, None, None]


# numbers 6 and 8: precision, and positions near the start and beyond the end


class Waves(PositionEncoding):
    """Correct: adds sines of the position to the embedding."""

    kind: ClassVar[str] = "position"
    extrapolates = True

    def embed(self, x, positions):
        frequencies = 100.0 ** -(torch.arange(self.d_model, device=x.device) / self.d_model)
        return x + (self.places(x, positions)[..., None] * frequencies).sin().to(x.dtype)

    def places(self, x, positions):
        return positions.to(torch.promote_types(x.dtype, torch.float32))


class RoundsItsPlaces(Waves):
    """Positions are in the precision of the embedding: in bfloat16, 257 is 256."""

    caught_by = "far-places-survive-low-precision"

    def places(self, x, positions):
        return positions.to(x.dtype)


class WrapsBeyondItsEnd(Waves):
    """From `max_seq_len` on, positions start again at 0, so places there are not told from those before."""

    caught_by = "ends-as-declared"

    def places(self, x, positions):
        return super().places(x, positions % self.max_seq_len)


class StopsAtItsEnd(Waves):
    """All places beyond `max_seq_len` are one."""

    caught_by = "ends-as-declared"

    def places(self, x, positions):
        return super().places(x, positions.clamp(max=self.max_seq_len - 1))


class InterpolatesByTheBatch(PlainRotary):
    """Beyond `max_seq_len`, angles shrink by the longest text of the batch, so a text hangs on its neighbours (Qwen#401)."""

    caught_by = "ends-as-declared"

    def angles(self, positions):
        return super().angles(positions) * self.max_seq_len / max(self.max_seq_len, int(positions.max()) + 1)


class DistancesInHalfPrecision(PlainBias):
    """Positions are rounded to bfloat16 before they are subtracted: far from the start, neighbours are one place."""

    caught_by = "far-neighbours-differ"

    def bias(self, q_positions, k_positions):
        return super().bias(*(positions.bfloat16().float() for positions in (q_positions, k_positions)))


class RotatesInHalfPrecision(PlainRotary):
    """Sines are rounded to bfloat16, whatever the precision of the model is."""

    caught_by = "far-neighbours-differ"

    def precompute(self, positions):
        return tuple(one.bfloat16() for one in super().precompute(positions))


class CausalBiasHangsOnTheKeysPlace(PlainBias):
    """In causal models the bias hangs on the position of the key, although the class is declared to be relative."""

    caught_by = "differences-decide"

    def causal_bias(self, q_positions, k_positions):
        return super().causal_bias(q_positions, k_positions) - 0.1 * k_positions[:, None, None, :]


class CausalBiasCountsColumns(PlainBias):
    """In causal models the distance is that of the columns, counted from the last."""

    caught_by = "asks-positions-only"

    def causal_bias(self, q_positions, k_positions):
        T, S = q_positions.shape[1], k_positions.shape[1]
        columns = torch.arange(S, device=k_positions.device)[None]
        return self.bias(columns[:, S - T:], columns)


class CausalBiasForgetsTheHeads(PlainBias):
    """In causal models the bias is one for all heads."""

    caught_by = "hooks-have-their-shapes"

    def causal_bias(self, q_positions, k_positions):
        return super().causal_bias(q_positions, k_positions)[:, :1]


class Table(PositionEncoding):
    """Correct: adds a learnt vector for each place."""

    kind: ClassVar[str] = "position"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.table = nn.Embedding(max_seq_len, d_model)

    def embed(self, x, positions):
        return x + self.table(positions)


class TakesTheFirstPlaceForPadding(Table):
    """A table with `padding_idx=0`, whose first place is that of the first token: it never learns."""

    caught_by = "learns-at-each-place"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.table = nn.Embedding(max_seq_len, d_model, padding_idx=0)


class FreezesThePlacesAtItsStart(Table):
    """The first four places are cut off from learning, as after a table was made longer."""

    caught_by = "learns-at-each-place"

    def embed(self, x, positions):
        added = self.table(positions)
        return x + torch.where(positions[..., None] < 4, added.detach(), added)


class MakesTwoPlacesOne(Table):
    """Places are counted from 1, and one too many is taken away: the first two are one."""

    caught_by = "tells-places-apart"

    def embed(self, x, positions):
        return super().embed(x, (positions - 1).clamp(min=0))
