"""Unusual designs that are correct: positions, feed-forwards, norms, heads. The kit must accuse none of them."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from miniformer.kernel import Norm, PositionEncoding

from .ffn import Plain as PlainFeedForward
from .head import Plain as PlainHead
from .position import PlainRotary
from .unseen_ffn import Routed


class XPos(PlainRotary):
    """Queries grow with their position as keys shrink, so a score falls with distance (Sun 2022, arXiv:2212.10554)."""

    known_violations: ClassVar = {"rotation-keeps-lengths": "lengths change with the position, and products do not"}
    extrapolates = False

    def precompute(self, positions):
        angles = self.angles(positions)
        frequencies = torch.arange(angles.shape[-1], device=positions.device) / angles.shape[-1]
        growth = ((frequencies + 0.4) / 1.4) ** (positions[:, None, :, None] / 512)
        return angles.cos(), angles.sin(), growth

    def rotate(self, x, where, role):
        turned, growth = super().rotate(x, where[:2], role), where[2].to(x.dtype)
        growth = torch.cat([growth, growth], dim=-1)
        return turned * growth if role == "q" else turned / growth


class Axial(PositionEncoding):
    """A place is a row and a column of a grid, and the vectors of both are added (Kitaev 2020, arXiv:2001.04451)."""

    kind: ClassVar[str] = "position"

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *, columns: Annotated[int, Field(ge=2)] = 8) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.columns = columns
        self.of_rows, self.of_columns = nn.Embedding(-(-max_seq_len // columns), d_model), nn.Embedding(columns, d_model)

    def embed(self, x, positions):
        return x + self.of_rows(positions // self.columns) + self.of_columns(positions % self.columns)


class SinesAndCosines(PositionEncoding):
    """Sines and cosines of the position, in turn, with a learnt strength (Vaswani 2017, arXiv:1706.03762)."""

    kind: ClassVar[str] = "position"
    extrapolates = True

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.strength = nn.Parameter(torch.ones(1))

    def embed(self, x, positions):
        frequencies = 10_000.0 ** -(torch.arange(0, self.d_model, 2, device=x.device, dtype=torch.float64) / self.d_model)
        angles = positions[..., None] * frequencies
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :self.d_model]
        return x + self.strength.to(x.dtype) * waves.to(x.dtype)


class SharedAndRouted(Routed):
    """One expert reads every token, beside those that are chosen for it (Dai 2024, arXiv:2401.06066)."""

    def __init__(self, d_model: int, d_ff: int, **options) -> None:
        super().__init__(d_model, d_ff, **options)
        self.shared = PlainFeedForward(d_model, d_ff)

    def forward(self, x, context):
        return self.shared(x, context) + super().forward(x, context)


class DropsExperts(Routed):
    """In training each expert is left out at times, and the others count more."""

    def __init__(self, d_model: int, d_ff: int, *, drop: Annotated[float, Field(ge=0, lt=1)] = 0.2, **options) -> None:
        super().__init__(d_model, d_ff, **options)
        self.drop = drop

    def run(self, expert, x, context):
        out = super().run(expert, x, context)
        if not self.training or not self.drop:
            return out
        stays = torch.rand((), device=x.device) >= self.drop
        return out * stays / (1 - self.drop)


class DynamicTanh(Norm):
    """tanh(alpha x), scaled and shifted, in place of a norm (Zhu 2025, arXiv:2503.10622)."""

    kind: ClassVar[str] = "norm"
    known_violations: ClassVar = {"brings-to-scale": "a tanh bounds its input and does not measure it"}

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.alpha, self.weight = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias


class LearnsItsEpsilon(Norm):
    """Unit root mean square, with an epsilon that is learnt and cannot become negative."""

    kind: ClassVar[str] = "norm"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight, self.epsilon = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.tensor(-13.0))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = wide.square().mean(dim=-1, keepdim=True) + F.softplus(self.epsilon.to(wide.dtype))
        return (wide * size.rsqrt()).to(x.dtype) * self.weight.to(x.dtype)


class MixtureOfSoftmaxes(PlainHead):
    """Scores are the logarithm of a mixture of two softmaxes, each of another view of the token (Yang 2017, 1711.03953)."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        if n_outputs < 2:
            raise ValueError("a softmax of one output is always 1")
        self.gate, self.views = nn.Linear(d_model, 2), nn.Linear(d_model, 2 * d_model)

    def forward(self, x, select=None):
        x = x if select is None else x[select]
        views = self.views(x).tanh().unflatten(-1, (2, self.d_model))
        scores = self.out(views).log_softmax(dim=-1) + self.gate(x).log_softmax(dim=-1)[..., None]
        return scores.logsumexp(dim=-2)


class CosineHead(PlainHead):
    """A score is the cosine between the token and an output's vector, times a learnt number."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x, select=None):
        x = x if select is None else x[select]
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.out.weight, dim=-1))
