"""Heads: language modelling (tied to the embedding or not) and classification."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout

from .init import linear


class LanguageModelHead(Head):
    """A score for each token of the vocabulary.

    Args:
        tied: share the matrix of the token embedding (Press & Wolf 2017, arXiv:1608.05859), where the widths agree.
    """

    def __init__(self, d_model: int, n_outputs: int, *, tied: bool = True) -> None:
        super().__init__(d_model, n_outputs)
        self.tied = tied
        self.out = linear(d_model, n_outputs)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return self.out(x if select is None else x[select])

    def tie(self, table: nn.Parameter) -> bool:
        if not self.tied or table.shape != self.out.weight.shape:
            return False
        self.out.weight = table
        return True


class ClassificationHead(Head):
    """A score for each class, at every position or for the whole sequence.

    Args:
        pool: whose hidden state stands for the sequence: `cls` its first token's, `mean` the mean of all.
    """

    def __init__(self, d_model: int, n_outputs: int, *, pool: Literal["cls", "mean"] = "cls") -> None:
        super().__init__(d_model, n_outputs)
        self.pool = pool
        self.out = linear(d_model, n_outputs, bias=True)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return self.out(x if select is None else x[select])

    def summary(self, x: Tensor, layout: Layout) -> Tensor:
        if self.pool == "cls":
            return super().summary(x, layout)
        real_BT1 = layout.real[..., None].to(x.dtype)
        return self.out((x * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1))
