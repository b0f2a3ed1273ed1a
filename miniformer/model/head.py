"""Heads: language modelling (tied to the embedding or not), classification of sequences and tokens, regression, embedding."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.ops.cross_entropy import linear_cross_entropy
from miniformer.ops.linear import is_just_a_matrix, listened_to

from .init import linear

Pool = Literal["cls", "mean", "last"]


def pooled(x: Tensor, layout: Layout, pool: Pool) -> Tensor:
    """One hidden state `[B, D]` for each row of `[B, T, D]`, blind to padding.

    Args:
        x: hidden states.
        layout: where they sit.
        pool: `cls` takes the first token's, `last` the last one's (what has seen all in a decoder), `mean` the mean of all.
    """
    if pool == "mean":
        real_BT1 = layout.real[..., None]
        return torch.where(real_BT1, x, 0).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1).to(x.dtype)
    columns_B = layout.first() if pool == "cls" else layout.last()
    return x[torch.arange(len(x), device=x.device), columns_B]


class LanguageModelHead(Head):
    """A score for each token of the vocabulary.

    Args:
        tied: share the matrix of the token embedding (Press & Wolf 2017, arXiv:1608.05859), where the widths agree.
        scale: factor of the scores. T5 with a tied matrix has 1 / sqrt(D) (Raffel 2020, arXiv:1910.10683).
        softcap: bound of the scores, softcap x tanh(score / softcap) (Gemma 2, arXiv:2408.00118); none: unbounded.
    """

    def __init__(self, d_model: int, n_outputs: int, *, tied: bool = True, scale: Annotated[float, Field(gt=0)] = 1.0,
                 softcap: Annotated[float, Field(gt=0)] | None = None) -> None:
        super().__init__(d_model, n_outputs)
        self.tied, self.scale, self.softcap = tied, scale, softcap
        self.out = linear(d_model, n_outputs)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        scores: Tensor = self.out(self._scaled(x if select is None else x[select]))
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        if self.softcap is not None or not self._is_just_a_matrix() or _works_in_fp16(x):
            return super().cross_entropy(x, targets)
        return linear_cross_entropy(self._scaled(x).flatten(0, 1), self.out.weight, targets.flatten())

    def _is_just_a_matrix(self) -> bool:
        """Whether calling it is scaling and multiplying with the matrix, and not what a subclass or a listener makes of it."""
        return (type(self).forward is LanguageModelHead.forward and "forward" not in vars(self) and not listened_to(self)
                and is_just_a_matrix(self.out) and not torch._C._are_functorch_transforms_active())

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def tie(self, table: nn.Parameter) -> bool:
        if not self.tied or table.shape != self.out.weight.shape:
            return False
        self.out.weight = table
        return True


def _works_in_fp16(x: Tensor) -> bool:
    """Whether gradients must be scaled up before they are in half precision."""
    device = x.device.type
    return torch.float16 == (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype)


class TokenClassificationHead(Head):
    """A score for each class, at every position."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.out = linear(d_model, n_outputs, bias=True)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return self.out(x if select is None else x[select])


class ClassificationHead(TokenClassificationHead):
    """A score for each class, at every position or for the whole sequence.

    Args:
        pool: whose hidden state stands for the sequence: `cls` its first token's, `mean` the mean of all, `last` its last
            token's.
    """

    def __init__(self, d_model: int, n_outputs: int, *, pool: Pool = "cls") -> None:
        super().__init__(d_model, n_outputs)
        self.pool = pool

    def summary(self, x: Tensor, layout: Layout) -> Tensor:
        return self(pooled(x, layout, self.pool))


class RegressionHead(ClassificationHead):
    """Numbers for the whole sequence. Its matrix starts at 0, so that a model starts at its target's mean.

    Args:
        pool: whose hidden state stands for the sequence: `mean` the mean of all, `cls` its first token's, `last` its last
            token's.
    """

    def __init__(self, d_model: int, n_outputs: int, *, pool: Pool = "mean") -> None:
        super().__init__(d_model, n_outputs, pool=pool)
        nn.init.zeros_(self.out.weight)


class EmbeddingHead(Head):
    """A vector of length 1 for the whole sequence: its pooled hidden state, projected and normalised.

    Args:
        pool: whose hidden state stands for the sequence: `mean` the mean of all (Reimers & Gurevych 2019,
            arXiv:1908.10084), `cls` its first token's, `last` its last token's.
    """

    def __init__(self, d_model: int, n_outputs: int, *, pool: Pool = "mean") -> None:
        super().__init__(d_model, n_outputs)
        self.pool = pool
        self.out = linear(d_model, n_outputs)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return F.normalize(self.out(x if select is None else x[select]), dim=-1)

    def summary(self, x: Tensor, layout: Layout) -> Tensor:
        return self(pooled(x, layout, self.pool))
