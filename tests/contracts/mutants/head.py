"""Heads: `Plain` is correct, every other class has one fault."""

from typing import ClassVar

import torch
from torch import nn

from miniformer.kernel import Head


class Plain(Head):
    """A matrix at every position, its mean over the tokens for a row; can be tied."""

    kind: ClassVar[str] = "head"

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.out = nn.Linear(d_model, n_outputs, bias=False)

    def forward(self, x, select=None):
        return self.out(x if select is None else x[select])

    def summary(self, x, layout):
        real = layout.real[..., None].to(x.dtype)
        return self((x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))

    def tie(self, table):
        self.out.weight = table
        return True


class PoolsPadding(Plain):
    """The mean over all columns."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        return self(x.mean(dim=1))


class TakesTheLastColumn(Plain):
    """The last column is not the last token where padding is on the right."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        return self(x[:, -1])


class TakesTheFirstColumn(Plain):
    """The first column is not the first token where padding is on the left."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        return self(x[:, 0])


class PicksColumnByColumn(Plain):
    """Selected positions come in another order than they are asked for."""

    caught_by = "selecting-is-picking"

    def forward(self, x, select=None):
        return self.out(x if select is None else x.transpose(0, 1)[select.T])


class LooksAround(Plain):
    """A convolution over the sequence, which sees the next position."""

    caught_by = "positions-stand-alone"

    def forward(self, x, select=None):
        x = x + torch.cat([x[:, 1:], x[:, :1]], dim=1) if x.ndim == 3 else x
        return super().forward(x, select)


class LooksAheadInTraining(Plain):
    """In training it adds the scores of the next position."""

    caught_by = "positions-stand-alone"

    def forward(self, x, select=None):
        out = super().forward(x)
        out = out + out.roll(-1, dims=1) if self.training and x.ndim == 3 else out
        return out if select is None else out[select]


class LooksFarAhead(Plain):
    """Adds what stands sixteen positions later."""

    caught_by = "positions-stand-alone"

    def forward(self, x, select=None):
        if x.ndim == 3 and x.shape[1] > 16:
            x = torch.cat([x[:, :-16] + x[:, 16:], x[:, -16:]], dim=1)
        return super().forward(x, select)


class PoolsPaddingInTraining(Plain):
    """The mean over all columns, in training."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        return self(x.mean(dim=1)) if self.training else super().summary(x, layout)


class SelectsInAnotherOrderInTraining(Plain):
    """The scores at selected positions come column by column, in training."""

    caught_by = "selecting-is-picking"

    def forward(self, x, select=None):
        return PicksColumnByColumn.forward(self, x, select) if self.training else super().forward(x, select)


class CopiesTheTable(Plain):
    """Says that it is tied, and has a copy."""

    caught_by = "ties-are-real"

    def tie(self, table):
        self.out.weight = nn.Parameter(table.detach().clone())
        return True


class TiesInSecret(Plain):
    """Is tied, and says that it is not."""

    caught_by = "ties-are-real"

    def tie(self, table):
        super().tie(table)
        return False


class LossOfAnotherScale(Plain):
    """Its own cross-entropy is of scores that it does not give."""

    caught_by = "loss-is-that-of-its-scores"

    def cross_entropy(self, x, targets):
        return super().cross_entropy(2 * x, targets)


class LossOfPadding(Plain):
    """A position at which no class is meant counts as class 0."""

    caught_by = "loss-is-that-of-its-scores"

    def cross_entropy(self, x, targets):
        return super().cross_entropy(x, targets.clamp(min=0))


class LossWithoutGradient(Plain):
    """The loss is right, and its gradient half as large as it should be."""

    caught_by = "loss-is-that-of-its-scores"

    def cross_entropy(self, x, targets):
        loss = super().cross_entropy(x, targets)
        return 0.5 * (loss + loss.detach())
