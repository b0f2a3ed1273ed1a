"""Attentions that were written before the properties that have to find them: shape, history, sizes, magnitudes, precision."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from .attention import Plain, order, together

# number 1: shape


class DropsTheOddColumn(Plain):
    """Works on columns in pairs, and an odd last one is not in its output."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        out, T = super().forward(x, context, state), x.shape[1]
        return out[:, :T - T % 2] if T > 1 else out


class SqueezesABatchOfOne(Plain):
    """A batch of one row comes back without its first dimension; a residual sum does not show it."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state).squeeze(0)


class SqueezesASingleToken(Plain):
    """One token, as in decoding, comes back as `[B, D]`, which a residual sum spreads over all rows."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state).squeeze(1)


class LeavesTheBlockPadded(Plain):
    """Rows of more than 8 columns are padded to blocks of 8, and come back as long as that."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        out, T = super().forward(x, context, state), x.shape[1]
        return F.pad(out, (0, 0, 0, -T % 8)) if T > 8 else out


# number 2: history


class KeepsTheFirstMaskOfAShape(Plain):
    """Masks are kept by their shape: the padding and documents of an earlier batch hold for all later ones."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.masks = {}

    def allowed(self, context):
        mask = super().allowed(context)
        return self.masks.setdefault((mask.shape, context.causal, context.memory is None), mask)


class ScalesByItsFirstBatch(Plain):
    """Scores are divided by their size in the first call, which nothing saves."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.size = None

    def scores(self, q, k, context):
        scores = super().scores(q, k, context)
        if self.size is None:
            self.size = float(scores.detach().square().mean().sqrt().clamp(min=0.1))
        return scores / self.size


class KeepsAMemoryByItsShape(Plain):
    """In evaluation a memory is kept by its shape: a batch of other sources of one length reads the first."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.memories = {}

    def forward(self, x, context, state=None):
        if context.memory is not None and not torch.is_grad_enabled():
            hidden = self.memories.setdefault((context.memory.hidden.shape, x.dtype), context.memory.hidden)
            context = replace(context, memory=replace(context.memory, hidden=hidden))
        return super().forward(x, context, state)


class Fading(Plain):
    """Correct: scores fall with the logarithm of the distance, as steeply as is learnt."""

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.slope, self.kept = nn.Parameter(torch.ones(1)), None

    def scores(self, q, k, context):
        scores = super().scores(q, k, context)
        return scores if context.memory is not None else scores - self.slope * self.fall(order(context).abs(), q.dtype)

    def fall(self, distance, dtype):
        return (1.0 + distance.double()).log().to(dtype)


class KeepsItsTableInTheFirstDtype(Fading):
    """A table of distances is made in the precision of the first call, and used in every other (as in sglang#33117)."""

    caught_by = "earlier-calls-change-nothing"

    def fall(self, distance, dtype):
        size = int(distance.max()) + 1
        if self.kept is None or len(self.kept) < size:
            self.kept = super().fall(torch.arange(size, device=distance.device), dtype)
        return self.kept.to(dtype)[distance]


class KeepsATableOfInferenceMode(Fading):
    """The table of the last distances is kept; one that was made in inference mode fails in training (flash-attention#299)."""

    caught_by = "earlier-calls-change-nothing"

    def fall(self, distance, dtype):
        if self.kept is None or self.kept[1].dtype != dtype or not torch.equal(self.kept[0], distance):
            self.kept = distance, super().fall(distance, dtype)
        return self.kept[1]


class ShrinksByTheLongestRow(Fading):
    """Distances are counted in parts of the longest one that it has ever seen, once that is above 8."""

    caught_by = "earlier-calls-change-nothing"

    def fall(self, distance, dtype):
        self.kept = max(self.kept or 8, int(distance.max()))
        return super().fall(distance * 8 / self.kept, dtype)


# number 4: sizes


class DropsTheOddElement(Plain):
    """Heads are read in pairs of elements: the last element of a head of odd width counts in no score."""

    caught_by = "uses-every-channel"

    def scores(self, q, k, context):
        even = self.d_head - self.d_head % 2 or 1
        return super().scores(q[..., :even], k[..., :even], context)


class LeavesTheOddHeadOut(Plain):
    """Heads run in two halves, and of an odd number the last one gives zeros."""

    caught_by = "uses-every-channel"

    def weights(self, q, k, context):
        weights, used = super().weights(q, k, context), self.n_heads - self.n_heads % 2 or 1
        return torch.cat([weights[:, :used], torch.zeros_like(weights[:, used:])], dim=1)


class DetachesEarlierKeys(Plain):
    """Of more than 64 keys, only the last 64 get a gradient."""

    caught_by = "long-rows-have-their-gradients"

    def weights(self, q, k, context):
        return super().weights(q, torch.cat([k[:, :, :-64].detach(), k[:, :, -64:]], dim=2), context)


class DetachesTheTail(Plain):
    """Columns after the last full block of 64 get no gradient: one of 65, none of 64."""

    caught_by = "long-rows-have-their-gradients"

    def forward(self, x, context, state=None):
        out, full = super().forward(x, context, state), x.shape[1] // 64 * 64
        return torch.cat([out[:, :full], out[:, full:].detach()], dim=1) if full else out


class DoublesTheGradientOfLongRows(Plain):
    """Rows of more than 256 columns take a backward pass in which the chunks count twice."""

    caught_by = "long-rows-have-their-gradients"

    def forward(self, x, context, state=None):
        return super().forward(2 * x - x.detach() if x.shape[1] > 256 else x, context, state)


# number 5: magnitudes


class MasksWithTenThousand(Plain):
    """A hidden key has a score of -10000, which a visible one may be below (as in flashinfer#4401)."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -10_000.0)
        return F.dropout(scores.softmax(dim=-1), self.dropout, self.training)


class SubtractsTheMaximumOfTheBatch(Plain):
    """A hand-written softmax subtracts the largest score of the batch: beside a row of large numbers, others give zeros."""

    caught_by = "sizes-do-not-mix"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        weights = (scores - scores.detach().max()).exp()
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return F.dropout(weights, self.dropout, self.training)


class HasNoGradientAtZero(Plain):
    """Queries of length 1, by a root whose gradient is infinite at zero: a token of zeros makes all weights NaN."""

    caught_by = "extreme-inputs-are-finite"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.q = nn.Linear(d_model, d_model, bias=False)

    def scores(self, q, k, context):
        return super().scores(q / (q.square().sum(dim=-1, keepdim=True).sqrt() + 1e-6), k, context)


class ScalesByTheLargestOfTheBatch(Plain):
    """Values share one scale for low precision: a large number in one row leaves nothing of the others."""

    caught_by = "sizes-do-not-mix"

    def forward(self, x, context, state=None):
        largest = x.detach().abs().amax().clamp(min=1000)
        lost = (x.abs() < largest / 10_000) & (largest > 1000)
        return super().forward(x.masked_fill(lost, 0), context, state)


# number 6: precision


class ComparesPositionsInHalfPrecision(Plain):
    """Places are compared in the model's precision: in bfloat16, 257 is 256, and a token sees a later one."""

    caught_by = "hears-alike-in-low-precision"

    def allowed(self, context):
        allowed = super().allowed(context)
        if not context.causal or context.memory is not None:
            return allowed
        layouts = context.layout, context.keys or context.layout
        queries, keys = (layout.positions.to(self.q.weight.dtype) for layout in layouts)
        return allowed | (together(context) & (order(context) > 0) & (keys[:, None] <= queries[:, :, None])[:, None])


class CentresItsInputInFloat32(Plain):
    """Centres a float32 copy of its input, which in float32 is no copy, but the residual stream itself."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context, state=None):
        wide = x.clone() if x.dtype is torch.float64 else x.float()
        wide -= wide.mean(dim=-1, keepdim=True)
        return super().forward(wide.to(x.dtype), context, state)


class AddsItsWeightsOneByOne(Plain):
    """The sum of weights is added up key by key: in bfloat16 it stops growing after some hundreds of them."""

    caught_by = "low-precision-is-near"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        total = torch.zeros_like(weights[..., 0])
        for weight in weights.unbind(dim=-1):
            total = total + weight
        return F.dropout(weights / total[..., None], self.dropout, self.training)
