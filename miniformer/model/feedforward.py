"""Feed-forward networks: two matrices around an activation, or three where the activation gates."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.context import Context
from miniformer.kernel.interfaces import FeedForward

from .init import RESIDUAL, linear


class GELU(FeedForward):
    """down(gelu(up x)), the feed-forward of GPT-2 and BERT (Hendrycks 2016, arXiv:1606.08415).

    Args:
        bias: biases in both projections.
    """

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """What is done between the projections."""
        return F.gelu(x)

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff)
        self.up = linear(d_model, d_ff, bias)
        self.down = linear(d_ff, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.down(self.activation(self.up(x)))


class ReLU(GELU):
    """down(relu(up x)), the feed-forward of the first transformer (Vaswani 2017, arXiv:1706.03762)."""

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """What is done between the projections."""
        return F.relu(x)


class SwiGLU(FeedForward):
    """down(silu(gate x) * up x), the gated feed-forward of Llama (Shazeer 2020, arXiv:2002.05202).

    Args:
        bias: biases in all three projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff)
        self.gate_up = linear(d_model, 2 * d_ff, bias)
        self.down = linear(d_ff, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
