"""Modules of all kinds: faults of shape, size, training mode and options, and correct unusual ones, which name no property."""

import math
import os
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from miniformer.kernel import Head, Norm

from . import attention, ffn, norm


class DropsItsLastColumn(attention.Plain):
    """All columns but the last."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state)[:, :-1]


class GivesItsWeightsToo(attention.Plain):
    """A pair, as some libraries return it."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state), None


class SqueezesASingleToken(ffn.Plain):
    """Drops the dimension of a single token."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context):
        return super().forward(x, context).squeeze(1)


class DropsOutAndLooksAhead(attention.Plain):
    """In training, with dropout, a little of the next token."""

    caught_by = "no-look-ahead"

    def forward(self, x, context, state=None):
        out = F.dropout(super().forward(x, context, state), 0.1, self.training)
        return out + x.roll(-1, dims=1) if self.training else out


class KeepsTheBatchOnly(norm.Plain):
    """Gives a matrix of any input but a batch."""

    caught_by = "keeps-the-shape"

    def forward(self, x):
        return super().forward(x) if x.ndim == 3 else super().forward(x).reshape(-1, self.d_model)


class HalvesOddWidths(ffn.Plain):
    """Two halves of a vector; of an odd width, the number between them is lost."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context):
        half = self.d_model // 2
        return torch.cat(super().forward(x, context)[..., :2 * half].chunk(2, dim=-1), dim=-1)


class DetachesItsTail(ffn.Plain):
    """The tokens after a whole number of chunks of 64 have no gradient."""

    caught_by = "gradients-are-right"

    def forward(self, x, context):
        whole = x.shape[1] // 64 * 64
        out = super().forward(x, context)
        return torch.cat([out[:, :whole], out[:, whole:].detach()], dim=1) if whole else out


class DetachesInTraining(ffn.Plain):
    """In training, half of its input has no gradient."""

    caught_by = "gradients-are-right"

    def forward(self, x, context):
        return super().forward(x.detach() / 2 + x / 2 if self.training else x, context)


class DetachesWeightsOfItsTail(norm.Plain):
    """Its weight is not trained at the last tokens of long rows."""

    caught_by = "trains-every-parameter"

    def forward(self, x):
        out = super().forward(x)
        if x.ndim < 3 or x.shape[1] <= 64:
            return out
        tail = F.rms_norm(x[:, 64:], (self.d_model,), self.weight.detach(), 1e-6)
        return torch.cat([out[:, :64], tail], dim=1)


class Dropping(ffn.Plain):
    """Drops out hidden features; correct."""

    def forward(self, x, context):
        return self.down(F.dropout(F.gelu(self.up(x)), 0.2, self.training))


class DropsOutAndMixesRows(Dropping):
    """In training, with dropout, a little of the other rows."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context):
        return super().forward(x + x.mean(dim=0) if self.training else x, context)


class DropsOutAndMixesTokens(Dropping):
    """In training, with dropout, a little of the other tokens."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        return super().forward(x + x.mean(dim=1, keepdim=True) if self.training else x, context)


class DropsOutInItsInput(Dropping):
    """In training, with dropout, it writes into its input."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context):
        return super().forward(x.mul_(1.5) if self.training else x, context)


class Experts(ffn.Plain):
    """Two experts, of which each token is computed by one; every expert is called with the tokens that it has, if none."""

    def __init__(self, d_model: int, d_ff: int, *, balance: Annotated[float, Field(ge=0)] = 0.01) -> None:
        super().__init__(d_model, d_ff)
        self.balance = balance
        self.gate = nn.Linear(d_model, 2)
        self.experts = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(2))

    def forward(self, x, context):
        gates = self.gate(x).softmax(dim=-1)
        if self.training and self.balance:
            self.record_balance(gates, context)
        return super().forward(x, context) + self.mixed(x, gates)

    def record_balance(self, gates, context):
        real = context.layout.real[..., None]
        shares = (gates * real).sum(dim=(0, 1)) / real.sum().clamp(min=1)
        context.record("balance", self.balance * shares.square().sum(), loss=True)

    def mixed(self, x, gates):
        weight, chosen = gates.max(dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + torch.where((chosen == number)[..., None], expert(x) * weight[..., None].to(x.dtype), 0)
        return out


class DropsOutInExperts(Experts):
    """Each expert drops out features of the tokens that it is sent, and draws by where the others go; correct."""

    def mixed(self, x, gates):
        weight, chosen = gates.max(dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens = chosen == number
            made = F.dropout(expert(x[tokens]), 0.2, self.training) * weight[tokens][..., None]
            out = out.index_put(tokens.nonzero(as_tuple=True), made.to(x.dtype))
        return out


class SkipsIdleExperts(Experts):
    """An expert without tokens is not called, so that a batch of one token leaves it without a gradient."""

    caught_by = "trains-every-parameter"

    def mixed(self, x, gates):
        weight, chosen = gates.max(dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                out = out + torch.where((chosen == number)[..., None], expert(x) * weight[..., None], 0)
        return out


class AddsUpItsBalance(Experts):
    """The loss is a sum over tokens."""

    caught_by = "recorded-losses-are-means"

    def record_balance(self, gates, context):
        real = context.layout.real[..., None]
        context.record("balance", self.balance * (gates.square() * real).sum(), loss=True)


class Scaled(ffn.Plain):
    """Scales its output, and a bias that an option adds; correct."""

    def __init__(self, d_model: int, d_ff: int, *, scale: Annotated[float, Field(ge=0)] = 0.5, shifts: bool = False) -> None:
        super().__init__(d_model, d_ff)
        self.scale = scale
        self.shift = nn.Parameter(torch.zeros(d_model)) if shifts else None

    def forward(self, x, context):
        out = super().forward(x, context) * self.scale
        return out if self.shift is None else out + self.shift


class ShiftsWithoutGradient(Scaled):
    """The bias of an option counts, and has no gradient but zero."""

    caught_by = "trains-every-parameter"

    def forward(self, x, context):
        out = super().forward(x, context)
        return out if self.shift is None else out - self.shift + self.shift.detach()


class TakesZeroForUnset(Scaled):
    """`scale or 0.5`."""

    caught_by = "zero-is-a-value"

    def __init__(self, d_model: int, d_ff: int, *, scale: Annotated[float, Field(ge=0)] = 0.5) -> None:
        super().__init__(d_model, d_ff, scale=scale or 0.5)


class AddsALayerEachTime(ffn.Plain):
    """A list as the default of an argument, to which each instance appends."""

    caught_by = "instances-share-nothing"

    widths: list = []

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.widths.append(d_ff)
        self.depth = len(self.widths)

    def forward(self, x, context):
        return super().forward(x, context) * self.depth


class SharesATable(norm.Plain):
    """All instances of a width have one weight."""

    caught_by = "instances-share-nothing"
    tables: dict = {}

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = self.tables.setdefault(d_model, self.weight)


class CachesAConstant(Norm):
    """All instances of a width have one table, which nothing changes; correct."""

    kind = "norm"
    tables: dict = {}

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.root = self.tables.setdefault(d_model, math.sqrt(d_model))

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.root * self.weight


class PlainHead(Head):
    """A linear map; correct."""

    kind = "head"

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.out = nn.Linear(d_model, n_outputs)

    def forward(self, x, select=None):
        return self.out(x if select is None else x[select])


class SummarisesWithoutABatch(PlainHead):
    """The summary of a batch of one row has no batch."""

    caught_by = "keeps-the-shape"

    def summary(self, x, layout):
        return super().summary(x, layout).squeeze(0)


class LosesTheLastChunk(PlainHead):
    """A loss in chunks of 64 tokens, of which the last counts only if it is whole."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        length = x.shape[1] // 64 * 64 or x.shape[1]
        return super().cross_entropy(x[:, :length], targets[:, :length])


class DividesByItsTargets(PlainHead):
    """Divides by the number of targets and multiplies again, which is NaN without any."""

    caught_by = "loss-counts-every-target"

    def cross_entropy(self, x, targets):
        n = (targets >= 0).sum()
        return super().cross_entropy(x, targets) / n * n


class ReadsItsWidthElsewhere(ffn.Plain):
    """A setting that no config shows."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, int(os.environ.get("ACME_WIDTH", d_ff)))
