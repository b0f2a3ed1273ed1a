"""Components that are wrong for numbers of some size or some dtype, and correct ones near them, which have no `caught_by`."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from miniformer.kernel import Norm, PositionEncoding

from . import attention, ffn, head, norm
from .attention import order, together

# --- attention


class SubtractsTenThousand(attention.Plain):
    """Its mask is a number that large scores outweigh."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        return (self.scores(q, k, context) - 10_000.0 * ~self.allowed(context)).softmax(dim=-1)


class FillsBeforeTheBias(attention.Plain):
    """A bias is added to hidden scores as well, and these are not low enough for it."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        scores = scores.masked_fill(~self.allowed(context), -1e4)
        return (scores if context.bias is None else scores + context.bias.to(scores.dtype)).softmax(dim=-1)


class MaximumOfTheHiddenToo(attention.Plain):
    """A softmax by hand, which subtracts the largest score, also of keys that are hidden."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp() * self.allowed(context)
        return weights / weights.sum(dim=-1, keepdim=True)


class MaximumOfAllQueries(attention.Plain):
    """A softmax by hand, which subtracts the largest score of a row of the batch."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        weights = (scores - scores.amax(dim=(1, 2, 3), keepdim=True)).exp()
        return weights / weights.sum(dim=-1, keepdim=True)


class MaximumOfTheBatch(attention.Plain):
    """A softmax by hand, which subtracts the largest score of the batch."""

    caught_by = "sizes-do-not-mix"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        weights = (scores - scores.max()).exp()
        return weights / weights.sum(dim=-1, keepdim=True)


class HearsHugePaddingOfTheMemory(SubtractsTenThousand):
    """Its mask is right but for a memory."""

    caught_by = "huge-values-are-not-heard"

    def weights(self, q, k, context):
        right = context.memory is None
        return attention.Plain.weights(self, q, k, context) if right else super().weights(q, k, context)


class LengthWithoutAnEpsilonInTheGradient(attention.Plain):
    """Divides tokens by their length and an epsilon; the gradient of a square root at 0 is none."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x, context, state=None):
        return super().forward(x / (x.square().sum(dim=-1, keepdim=True).sqrt() + 1e-6), context, state)


class MasksByRoundedPositions(attention.Plain):
    """Compares positions in the dtype of the model: in bfloat16, 257 is 256."""

    caught_by = "hears-alike-in-low-precision"

    def allowed(self, context):
        queries, keys = context.layout, context.keys or context.layout
        if not context.causal or context.memory is not None:
            return super().allowed(context)
        dtype = self.q.weight.dtype
        later = keys.positions[:, None].to(dtype) > queries.positions[:, :, None].to(dtype)
        return together(context) & ~later[:, None]


class LooksAheadInHalfPrecision(attention.Plain):
    """A fast path for bfloat16, which forgets the mask."""

    caught_by = "hears-alike-in-low-precision"

    def allowed(self, context):
        allowed = super().allowed(context)
        return torch.ones_like(allowed) if self.q.weight.dtype == torch.bfloat16 else allowed


class DeafInSinglePrecision(attention.Plain):
    """In float32 a token sees itself and those far away."""

    caught_by = "hears-alike-in-low-precision"

    def allowed(self, context):
        allowed = super().allowed(context)
        if self.q.weight.dtype != torch.float32 or context.memory is not None:
            return allowed
        return allowed & ((order(context) == 0) | (order(context) < -8))


class HalfInSinglePrecision(attention.Plain):
    """Where the model is in float32, its weights are in bfloat16."""

    caught_by = "low-precision-is-near"

    def weights(self, q, k, context):
        weights = super().weights(q, k, context)
        return weights.bfloat16().to(q.dtype) if q.dtype == torch.float32 else weights


class OwnDistancesInItsDtype(attention.Plain):
    """Scores fall with a distance between positions that were rounded."""

    caught_by = "low-precision-is-near"

    def scores(self, q, k, context):
        if context.memory is not None:
            return super().scores(q, k, context)
        queries, keys = (layout.positions.to(q.dtype) for layout in (context.layout, context.keys or context.layout))
        return super().scores(q, k, context) - (queries[:, None, :, None] - keys[:, None, None, :]).abs()


class AlwaysHalf(attention.Plain):
    """Its softmax is in bfloat16, whatever the dtype of the model: small changes of a score change nothing, or too much."""

    caught_by = "gradients-are-right"

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        return scores.bfloat16().softmax(dim=-1).to(q.dtype)


class WritesIntoWhatItCasts(attention.Plain):
    """A cast to the dtype that a tensor has is no copy."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context, state=None):
        wide = x.float()
        wide.mul_(0.5)
        return super().forward(wide.to(x.dtype), context, state)


class WritesIntoWhatIsContiguous(attention.Plain):
    """Copies an input that is not contiguous, and writes into the others."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context, state=None):
        return super().forward(x.to(torch.bfloat16 if x.dtype == torch.bfloat16 else torch.double).contiguous().mul_(2)
                               .to(x.dtype), context, state)


class WritesIntoTheMask(attention.Plain):
    """Hides more in the mask that all layers share."""

    caught_by = "leaves-its-inputs-alone"

    def allowed(self, context):
        allowed = super().allowed(context)
        return allowed.logical_and_(order(context) > -3) if context.memory is None else allowed


class WritesIntoTheBias(attention.Plain):
    """Masks the bias that all layers share."""

    caught_by = "leaves-its-inputs-alone"

    def scores(self, q, k, context):
        if context.bias is not None:
            context.bias.masked_fill_(~self.allowed(context), -1e30)
        return super().scores(q, k, context)


class OnlineSoftmax(attention.Plain):
    """Correct: keys in blocks of 8 with a running maximum, whose mask is the lowest number of the dtype."""

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).float() if q.dtype == torch.bfloat16 else self.scores(q, k, context)
        scores = scores.masked_fill(~self.allowed(context), torch.finfo(scores.dtype).min)
        highest = scores.new_full((*scores.shape[:-1], 1), torch.finfo(scores.dtype).min)
        total, parts = torch.zeros_like(highest), []
        for block in scores.split(8, dim=-1):
            new = torch.maximum(highest, block.amax(dim=-1, keepdim=True))
            shrink, part = (highest - new).exp(), (block - new).exp()
            parts = [one * shrink for one in parts] + [part]
            total, highest = total * shrink + part.sum(dim=-1, keepdim=True), new
        return F.dropout((torch.cat(parts, dim=-1) / total).to(q.dtype), self.dropout, self.training)


# --- feed-forwards


class RoundsByTheLargestOfTheBatch(ffn.Plain):
    """Rounds to a grid that the largest number of the batch sets."""

    caught_by = "sizes-do-not-mix"

    def forward(self, x, context):
        step = x.detach().abs().amax() / 2 ** 20
        return super().forward(x + ((x / step).round() * step - x).detach(), context)


class RoundsByTheLargestOfTheRow(ffn.Plain):
    """Rounds to a grid that the largest number of a row sets: beside itself, a token has many steps."""

    caught_by = "sizes-do-not-mix"

    def forward(self, x, context):
        step = x.detach().abs().amax(dim=(1, 2), keepdim=True) / 2 ** 22
        return super().forward(x + ((x / step).round() * step - x).detach(), context)


class NormalisesWithoutAnEpsilon(ffn.Plain):
    """A norm inside, which divides zeros by zero."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x, context):
        return super().forward(x * x.square().mean(dim=-1, keepdim=True).rsqrt(), context)


class NormalisesByADifference(ffn.Plain):
    """A norm inside, whose variance is a difference of two large numbers."""

    caught_by = "large-means-cost-no-precision"

    def forward(self, x, context):
        mean = x.mean(dim=-1, keepdim=True)
        variance = (x.square().mean(dim=-1, keepdim=True) - mean.square()).clamp(min=0)
        return super().forward((x - mean) * (variance + 1e-5).rsqrt(), context)


class BalancesBySize(ffn.PlainMixture):
    """The loss of balance weighs padding with almost nothing."""

    caught_by = "huge-values-are-not-heard"

    def forward(self, x, context):
        if self.training:
            real = context.layout.real[..., None] + 1e-6
            context.record("size", ((x * real).square().sum() / real.sum()) * self.gate.weight.square().sum(), loss=True)
        return super().forward(x, context)


class SinglesOutInPlace(ffn.Plain):
    """Works on the input that it has flattened, which is the input."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context):
        tokens = x.flatten(0, 1) if x.dtype != torch.float64 else x.flatten(0, 1).clone()
        tokens /= 2
        return super().forward(tokens.view(x.shape), context)


class ChoosesOne(ffn.Plain):
    """Correct: the better of two for each token, in place on its own copy of the input, which need not be contiguous."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.gate = nn.Linear(d_model, 2)
        self.other = ffn.Plain(d_model, d_ff)

    def forward(self, x, context):
        gates = self.gate(x).softmax(dim=-1)
        both = torch.stack([super().forward(x, context), self.other(x.clone().mul_(2), context)], dim=-1)
        return both.gather(-1, gates.argmax(dim=-1)[..., None, None].expand(*x.shape, 1))[..., 0] * gates.amax(-1, keepdim=True)


# --- norms


class VarianceAsADifference(norm.Plain):
    """E[x^2] - E[x]^2, in float32 at least, and never negative."""

    caught_by = "large-means-cost-no-precision"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, square = wide.mean(dim=-1, keepdim=True), wide.square().mean(dim=-1, keepdim=True)
        return ((wide - mean) * ((square - mean.square()).clamp(min=0) + 1e-5).rsqrt()).to(x.dtype) * self.weight


class NoEpsilon(norm.Plain):
    """Zeros divided by zero."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * wide.square().mean(dim=-1, keepdim=True).rsqrt()).to(x.dtype) * self.weight


class EpsilonOutsideTheRoot(norm.Plain):
    """The outputs of zeros are zeros, and their gradient is NaN."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide / (wide.square().mean(dim=-1, keepdim=True).sqrt() + 1e-6)).to(x.dtype) * self.weight


class EpsilonOfTheBatch(norm.Plain):
    """Its epsilon is a part of the largest mean square, so that small vectors beside large ones vanish."""

    caught_by = "sizes-do-not-mix"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square().mean(dim=-1, keepdim=True)
        return (wide * (square + 1e-9 * square.max() + 1e-6).rsqrt()).to(x.dtype) * self.weight


class StandardByHand(Norm):
    """Correct: the variance in two passes, and a root with its epsilon inside."""

    kind: ClassVar[str] = "norm"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(dim=-1, keepdim=True)
        return (centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()).to(x.dtype) * self.weight + self.bias


# --- heads


class LogOfTheSoftmax(head.Plain):
    """A weight that is too small for its dtype has a logarithm of minus infinity."""

    caught_by = "loss-is-that-of-its-scores"

    def cross_entropy(self, x, targets):
        selected = targets >= 0
        weights = self(x, selected).softmax(dim=-1)
        return -weights.gather(1, targets[selected][:, None]).log().sum()


class LogOfTheSoftmaxAndALittle(head.Plain):
    """No loss is larger than that of the little that is added."""

    caught_by = "loss-is-that-of-its-scores"

    def cross_entropy(self, x, targets):
        selected = targets >= 0
        weights = self(x, selected).softmax(dim=-1)
        return -(weights.gather(1, targets[selected][:, None]) + 1e-12).log().sum()


class SumOfExponentials(head.Plain):
    """The logarithm of a sum of numbers that overflow."""

    caught_by = "extreme-inputs-are-finite"

    def cross_entropy(self, x, targets):
        selected = targets >= 0
        scores = self(x, selected).to(torch.promote_types(x.dtype, torch.float32))
        return (scores.exp().sum(dim=-1).log() - scores.gather(1, targets[selected][:, None])[:, 0]).sum()


class LossInItsDtype(head.Plain):
    """The loss has the dtype of the scores."""

    caught_by = "its-loss-is-exact"

    def cross_entropy(self, x, targets):
        return F.cross_entropy(self(x).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")


class LogarithmsInItsDtype(head.Plain):
    """The loss is summed in float32, of logarithms that were rounded."""

    caught_by = "its-loss-is-exact"

    def cross_entropy(self, x, targets):
        logs = F.log_softmax(self(x), dim=-1)
        wide = logs.flatten(0, 1).to(torch.promote_types(logs.dtype, torch.float32))
        return F.nll_loss(wide, targets.flatten(), ignore_index=-1, reduction="sum")


class SumsInHalf(head.Plain):
    """Adds the losses of tokens one by one to a number of three digits, then casts."""

    caught_by = "its-loss-is-exact"

    def cross_entropy(self, x, targets):
        scores = self(x).flatten(0, 1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        losses = F.cross_entropy(scores.to(wide), targets.flatten(), ignore_index=-1, reduction="none")
        return losses.to(x.dtype).cumsum(dim=0)[-1].to(wide)


class PoolsByTenThousand(head.Plain):
    """Pools by weights that it learns, and hides padding by a number."""

    caught_by = "huge-values-are-not-heard"
    hides: ClassVar[float] = -1e4

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.ask = nn.Linear(d_model, 1, bias=False)

    def summary(self, x, layout):
        scores = self.ask(x)[..., 0] + self.hides * ~layout.real
        return self((scores.softmax(dim=-1)[..., None] * x).sum(dim=1))


class ClampsTheTargets(head.Plain):
    """Makes valid targets of those that do not count, in the tensor that it was given."""

    caught_by = "leaves-its-inputs-alone"

    def cross_entropy(self, x, targets):
        counts = (targets >= 0).flatten()
        losses = F.cross_entropy(self(x).flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32)),
                                 targets.clamp_(min=0).flatten(), reduction="none")
        return (losses * counts).sum()


class MixtureOfSoftmaxes(head.Plain):
    """Correct: scores are logarithms of a mixture of softmaxes, pooled by weights that it learns."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        if n_outputs < 2:
            raise ValueError("the weight of the only class is always 1, and nothing could be learnt")
        super().__init__(d_model, n_outputs)
        self.prior, self.other = nn.Linear(d_model, 2), nn.Linear(d_model, n_outputs)
        self.ask = nn.Linear(d_model, 1, bias=False)

    def forward(self, x, select=None):
        x = x if select is None else x[select]
        wide = torch.promote_types(x.dtype, torch.float32)
        prior = self.prior(x).log_softmax(dim=-1, dtype=wide)
        parts = torch.stack([layer(x).log_softmax(dim=-1, dtype=wide) for layer in (self.out, self.other)], dim=-1)
        return (parts + prior[..., None, :]).logsumexp(dim=-1).to(x.dtype)

    def summary(self, x, layout):
        weights = self.ask(x)[..., 0].masked_fill(~layout.real, -torch.inf).softmax(dim=-1)
        return self((weights[..., None] * x).sum(dim=1))


# --- position encodings


class WavesOfRoundedPositions(PositionEncoding):
    """Positions are cast to bfloat16, which begins to round whole numbers at 256, whatever the dtype of the model."""

    kind: ClassVar[str] = "position"
    caught_by = "far-neighbours-differ"
    counts_in: ClassVar[torch.dtype] = torch.bfloat16
    extrapolates = True

    def embed(self, x, positions):
        width = (self.d_model + 1) // 2
        frequencies = 1000.0 ** -(torch.arange(width, device=x.device) / width)
        angles = positions.to(self.counts_in).float()[..., None] * frequencies
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :self.d_model]
        return x + waves.to(x.dtype)


class WavesOfHalfPositions(WavesOfRoundedPositions):
    """Positions are cast to float16, which begins to round whole numbers at 2048."""

    caught_by = "far-neighbours-differ"

    counts_in = torch.float16


class DistancesOfRoundedPositions(PositionEncoding):
    """Takes the difference of two positions that were rounded, whatever the dtype of the model."""

    kind: ClassVar[str] = "position"
    caught_by = "far-neighbours-differ"
    extrapolates = True
    relative = True

    def bias(self, q_positions, k_positions):
        q, k = q_positions.bfloat16(), k_positions.bfloat16()
        return -0.1 * (q[:, None, :, None] - k[:, None, None, :]).abs().float().expand(-1, self.n_heads, -1, -1)


class StartsItsPositionsInPlace(WavesOfRoundedPositions):
    """Counts from the first position of a row, in the tensor that it was given."""

    caught_by = "leaves-its-inputs-alone"
    counts_in = torch.float32

    def embed(self, x, positions):
        positions -= 1
        return super().embed(x, positions)


class WavesInItsDtype(WavesOfRoundedPositions):
    """Angles are products in the dtype of the model."""

    caught_by = "low-precision-is-near"
    counts_in = torch.float32

    def embed(self, x, positions):
        width = (self.d_model + 1) // 2
        frequencies = (1000.0 ** -(torch.arange(width, device=x.device) / width)).to(x.dtype)
        angles = positions.to(x.dtype)[..., None] * frequencies
        return x + torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :self.d_model]


class PositionsInPairs(PositionEncoding):
    """Correct: waves of every second position, so that neighbours are alike everywhere, at the end as at the beginning."""

    kind: ClassVar[str] = "position"
    extrapolates = True

    def embed(self, x, positions):
        return x + (positions[..., None] // 2 * torch.linspace(1.0, 0.1, self.d_model, device=x.device)).sin().to(x.dtype)
