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
from miniformer.ops.linear import is_just_a_matrix
from miniformer.ops.switch import log_path
from miniformer.ops.torch_private import functorch_is_active, has_hooks

from .init import linear

Pool = Literal["cls", "mean", "last"]


def pooled(x: Tensor, layout: Layout, pool: Pool) -> Tensor:
    """One hidden state `[B, D]` for each row of `[B, T, D]`. Padding does not count.

    Args:
        x: hidden states.
        layout: their positions, and which of them are padding.
        pool: `cls` takes the first token's, `last` the last token's (which in a decoder has seen all), `mean` the mean of all.
    """
    if pool == "mean":
        real_BT1 = layout.real[..., None]
        return torch.where(real_BT1, x, 0).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1).to(x.dtype)
    columns_B = layout.first() if pool == "cls" else layout.last()
    return x[torch.arange(len(x), device=x.device), columns_B]


class LanguageModelHead(Head):
    """A score for each token of the vocabulary.

    Args:
        tied: share the matrix of the token embedding (Press & Wolf 2017, arXiv:1608.05859), if the shapes agree.
        scale: factor of the scores; T5 takes 1 / sqrt(D) with a tied matrix (Raffel 2020, arXiv:1910.10683).
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
        needs_all_scores = self.softcap is not None or not self._only_multiplies() or _works_in_fp16(x)
        if not torch.compiler.is_compiling():
            log_path("loss of a vocabulary", "all scores at once" if needs_all_scores else "a part of the scores at a time")
        if needs_all_scores:
            return super().cross_entropy(x, targets)
        return linear_cross_entropy(self._scaled(x).flatten(0, 1), self.out.weight, targets.flatten())

    def _only_multiplies(self) -> bool:
        """Whether calling this head only scales and multiplies by its matrix, so that the loss may use the matrix itself.

        A subclass or a hook may make something else of the call, plain torch calls the head (`is_just_a_matrix`), and
        `torch.func` cannot see through the loss's own gradients.
        """
        forward_is_ours = type(self).forward is LanguageModelHead.forward and "forward" not in vars(self)
        return forward_is_ours and not has_hooks(self) and is_just_a_matrix(self.out) and not functorch_is_active()

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def tie(self, table: nn.Parameter) -> bool:
        if not self.tied or table.shape != self.out.weight.shape:
            return False
        self.out.weight = table
        return True


def _works_in_fp16(x: Tensor) -> bool:
    """Whether scores are in float16: its gradients must be scaled up first, and ours are made before the loss is scaled."""
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
