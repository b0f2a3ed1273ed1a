"""Norms and heads that were written before the properties that have to find them."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from . import head, norm


class FlattensFourDimensions(norm.Plain):
    """Heads are normalised as one long list of vectors, which does not get its dimensions back."""

    caught_by = "keeps-the-shape"

    def forward(self, x):
        out = super().forward(x)
        return out.flatten(0, -2) if x.ndim > 3 else out


class SqueezesASingleVector(norm.Plain):
    """One vector comes back without the dimension that it was alone in."""

    caught_by = "keeps-the-shape"

    def forward(self, x):
        out = super().forward(x)
        return out.squeeze(-2) if x.ndim > 2 else out


class CentresByItsFirstBatch(norm.Plain):
    """The mean of the first batch is taken from all later ones, and nothing saves it."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.detach().flatten(0, -2).mean(dim=0)
        return super().forward(x - self.mean.to(x.dtype))


class VarianceAsADifference(norm.Plain):
    """The variance is the mean of squares without the square of the mean: with a large mean nothing of it is left."""

    caught_by = "large-means-cost-no-precision"

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        variance = (x.square().mean(dim=-1, keepdim=True) - mean.square()).clamp(min=0)
        return (x - mean) * (variance + 1e-6).rsqrt() * self.weight


class HasNoEpsilon(norm.Plain):
    """A vector of zeros is divided by zero."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * wide.square().mean(dim=-1, keepdim=True).rsqrt()).to(x.dtype) * self.weight


class HasNoGradientAtZero(norm.Plain):
    """The root comes before the epsilon: a vector of zeros has a finite output, and a gradient that is NaN."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide / (wide.square().mean(dim=-1, keepdim=True).sqrt() + 1e-6)).to(x.dtype) * self.weight


class DividesByTheLargestOfAll(norm.Plain):
    """Against overflow, all vectors are divided by the largest number among them: beside 10000, small ones drown in epsilon."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        return super().forward(x / x.detach().abs().amax().clamp(min=1))


class CentresInPlaceInFloat32(norm.Plain):
    """Works in place on a float32 copy of its input, which in float32 is the input."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x):
        wide = x.clone() if x.dtype is torch.float64 else x.float()
        wide -= wide.mean(dim=-1, keepdim=True)
        return super().forward(wide.to(x.dtype))


class Noisy(norm.Plain):
    """Correct: adds noise in training."""

    def __init__(self, d_model: int, *, noise: Annotated[float, Field(ge=0)] = 0.1) -> None:
        super().__init__(d_model)
        self.noise = noise

    def forward(self, x):
        return super().forward(x + self.noise * torch.randn_like(x) if self.training and self.noise else x)


class NoisyOverTheSequence(Noisy):
    """In training with noise, the statistics are those of the whole sequence, later tokens included."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        if not self.training or not self.noise or x.ndim < 2:
            return super().forward(x)
        x = x + self.noise * torch.randn_like(x)
        return x * x.square().mean(dim=(-2, -1), keepdim=True).add(1e-6).rsqrt() * self.weight


class SqueezesOneOutput(head.Plain):
    """With one output, the last dimension is dropped, as a regression likes it."""

    caught_by = "keeps-the-shape"

    def forward(self, x, select=None):
        out = super().forward(x, select)
        return out.squeeze(-1) if self.n_outputs == 1 else out


class KeepsItsMatrixOfTheFirstEvaluation(head.Plain):
    """Evaluation keeps its matrix in rows of length 1: after further training it still scores with the first."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.kept = None

    def forward(self, x, select=None):
        x = x if select is None else x[select]
        if self.training:
            return x @ F.normalize(self.out.weight, dim=-1).to(x.dtype).T
        if self.kept is None:
            self.kept = F.normalize(self.out.weight.detach().clone(), dim=-1)
        return x @ self.kept.to(x.dtype).T


class LosesTheLastChunk(head.Plain):
    """The loss is added up in chunks of 64 columns, and the rest after the last full chunk does not count."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        T = max(1, x.shape[1] // 64) * 64
        return super().cross_entropy(x[:, :T], targets[:, :T])


class DetachesTheLastChunk(head.Plain):
    """The loss of all chunks is right, and that of the rest after full chunks of 64 columns has no gradient."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        T = max(1, x.shape[1] // 64) * 64
        return super().cross_entropy(torch.cat([x[:, :T], x[:, T:].detach()], dim=1), targets)


class AddsUpMeansOfChunks(head.Plain):
    """In chunks of 32 columns, each chunk's mean counts the same, however many targets it has (NeMo Automodel#3803)."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        chunks = [(one, of) for one, of in zip(x.split(32, 1), targets.split(32, 1), strict=True) if (of >= 0).any()]
        means = [super(AddsUpMeansOfChunks, self).cross_entropy(one, of) / (of >= 0).sum() for one, of in chunks]
        return sum(means) / len(means) * (targets >= 0).sum() if means else super().cross_entropy(x, targets)


class LossOfNoTargetsIsNaN(head.Plain):
    """The loss is a mean times the number of targets: NaN where there are none (torchtune#2341)."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        scores = self(x, targets >= 0)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.cross_entropy(scores, targets[targets >= 0]) * (targets >= 0).sum()


class TakesTheLogarithmOfItsSoftmax(head.Plain):
    """The logarithm is taken of a softmax, which is zero for scores of some hundreds: an infinite loss."""

    caught_by = "extreme-inputs-are-finite"

    def cross_entropy(self, x, targets):
        scores = self(x, targets >= 0)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return -scores.softmax(dim=-1).gather(-1, targets[targets >= 0][:, None]).log().sum()


class SubtractsTheMaximumOfTheBatch(head.Plain):
    """Against overflow, the largest score of the batch is subtracted from all: a row of small scores has an infinite loss."""

    caught_by = "extreme-inputs-are-finite"

    def cross_entropy(self, x, targets):
        scores = self(x, targets >= 0)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores - scores.detach().max() if len(scores) else scores
        return (scores.exp().sum(dim=-1).log() - scores.gather(-1, targets[targets >= 0][:, None])[:, 0]).sum()


class LossInItsOwnPrecision(head.Plain):
    """Losses are added up in the model's precision: in bfloat16 a sum of some hundreds has two digits."""

    caught_by = "its-loss-is-exact"

    def cross_entropy(self, x, targets):
        return F.cross_entropy(self(x, targets >= 0), targets[targets >= 0], reduction="sum")


class RoundsItsLoss(head.Plain):
    """The loss comes in float32, of scores that were rounded to bfloat16 where the model is in float32."""

    caught_by = "its-loss-is-exact"

    def cross_entropy(self, x, targets):
        scores = self(x, targets >= 0)
        scores = scores.bfloat16().float() if scores.dtype is torch.float32 else scores
        wide = torch.promote_types(scores.dtype, torch.float32)
        return F.cross_entropy(scores.to(wide), targets[targets >= 0], reduction="sum")


class Dropping(head.Plain):
    """Correct: drops elements of its input in training."""

    def __init__(self, d_model: int, n_outputs: int, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1) -> None:
        super().__init__(d_model, n_outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, select=None):
        return super().forward(self.dropout(x), select)


class LooksAheadUnderDropout(Dropping):
    """In training with dropout, the score of the next position is added."""

    caught_by = "positions-stand-alone"

    def forward(self, x, select=None):
        ahead = self.training and self.dropout.p > 0 and x.ndim == 3
        return super().forward(x + x.roll(-1, dims=1) if ahead else x, select)


class GuessesTheSideFromTheFirstRow(head.Plain):
    """The last token stands in the last column, if it does so in the first row; else each row is asked."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        if bool(layout.real[0, -1]):
            return self(x[:, -1:])[:, 0]
        return self(x[torch.arange(len(x), device=x.device), layout.last()][:, None])[:, 0]
