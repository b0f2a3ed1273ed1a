"""Norms: `Plain` is correct, every other class has one fault."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from miniformer.kernel import Norm


class Plain(Norm):
    """Unit root mean square."""

    kind: ClassVar[str] = "norm"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return F.rms_norm(x, (self.d_model,), self.weight, 1e-6)


class NormalisesOverTheSequence(Plain):
    """The mean square is taken over all tokens before the vector."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        return x * x.square().mean(dim=(-2, -1), keepdim=True).add(1e-6).rsqrt() * self.weight


class NormalisesOverTheSequenceInTraining(Plain):
    """Statistics of the row in training, of each vector in evaluation."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        return NormalisesOverTheSequence.forward(self, x) if self.training and x.ndim > 1 else super().forward(x)


class NormalisesOverLongSequences(Plain):
    """Vectors of rows that are longer than a block of 16 share their scale."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        return NormalisesOverTheSequence.forward(self, x) if x.ndim > 1 and x.shape[-2] > 16 else super().forward(x)


class OnlyCentres(Plain):
    """Subtracts the mean and leaves the scale."""

    caught_by = "brings-to-scale"

    def forward(self, x):
        return (x - x.mean(dim=-1, keepdim=True)) * self.weight


class SquaresInHalfPrecision(Plain):
    """Squares of a thousand are infinite in float16."""

    caught_by = "keeps-precision"

    def forward(self, x):
        return x * (x * x).mean(dim=-1, keepdim=True).add(1e-6).rsqrt() * self.weight


class StaysInFloat32(Plain):
    """Computes in float32 and returns float32."""

    caught_by = "keeps-dtype-and-device"

    def forward(self, x):
        return F.rms_norm(x.float(), (self.d_model,), self.weight.float(), 1e-6)
