"""Parts of BERT that miniformer does not have: its embeddings, and two of its heads (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from miniformer.kernel import Head, PositionEncoding

Activation = Literal["gelu", "gelu-tanh", "relu", "silu"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu, "silu": F.silu,
}


class BertEmbeddings(PositionEncoding):
    """A learned vector for each position and one for the segment, added to the embeddings and normalised (BERT).

    A model sees the first segment only; the vectors of other segments are kept, so that an export has them, and not used.

    Args:
        n_segments: rows of the segment table (`type_vocab_size`).
        eps: added to the variance.
    """

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, *, n_segments: Annotated[int, Field(ge=1)] = 2,
                 eps: Annotated[float, Field(gt=0)] = 1e-12) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.positions, self.segments = nn.Embedding(max_seq_len, d_model), nn.Embedding(n_segments, d_model)
        self.norm = nn.LayerNorm(d_model, eps=eps)
        for table in (self.positions, self.segments):
            nn.init.normal_(table.weight, std=d_model ** -0.5)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        segment_D = self.segments(torch.zeros((), dtype=torch.long, device=x.device))
        return cast(Tensor, self.norm(x + segment_D + self.positions(positions)))


class MaskedLanguageModelHead(Head):
    """A score for each token, from a transformed hidden state and the tied token embedding, with a bias (BERT).

    Args:
        activation: the activation of the transform.
        eps: added to the variance in its norm.
    """

    def __init__(self, d_model: int, n_outputs: int, *, activation: Activation = "gelu",
                 eps: Annotated[float, Field(gt=0)] = 1e-12) -> None:
        super().__init__(d_model, n_outputs)
        self.dense, self.norm = nn.Linear(d_model, d_model), nn.LayerNorm(d_model, eps=eps)
        self.activation = ACTIVATIONS[activation]
        self.out = nn.Linear(d_model, n_outputs)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        x = x if select is None else x[select]
        return cast(Tensor, self.out(self.norm(self.activation(self.dense(x)))))

    def tie(self, table: nn.Parameter) -> bool:
        if table.shape != self.out.weight.shape:
            return False
        self.out.weight = table
        return True


class PooledHead(Head):
    """Scores from the tanh of a projected hidden state; for a sequence, from its first token's (BERT's pooler)."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        self.pooler, self.out = nn.Linear(d_model, d_model), nn.Linear(d_model, n_outputs)

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        x = x if select is None else x[select]
        return cast(Tensor, self.out(torch.tanh(self.pooler(x))))

    @torch.no_grad()
    def rescale(self, std: float, mean: float) -> None:
        """Let the outputs be `std` times as large, plus `mean`: a number in its own unit, where it was learnt in deviations."""
        self.out.weight.mul_(std)
        self.out.bias.mul_(std).add_(mean)
