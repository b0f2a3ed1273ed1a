"""Feed-forward networks: two matrices around an activation, or three if the activation is a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.context import Context
from miniformer.kernel.interfaces import FeedForward

from .init import RESIDUAL, linear


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


Activation = Literal["gelu", "gelu-tanh", "relu", "relu2", "silu", "sigmoid", "tanh", "elu", "leaky-relu", "mish", "softplus",
                     "identity"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu, "relu2": relu2, "silu": F.silu,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "elu": F.elu, "leaky-relu": F.leaky_relu, "mish": F.mish,
    "softplus": F.softplus, "identity": torch.nn.Identity(),
}


class MLP(FeedForward):
    """down(activation(up x)) with any activation.

    Args:
        activation: the function between the projections.
        bias: biases in both projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = "gelu", bias: bool = False) -> None:
        super().__init__(d_model, d_ff)
        self.activation = ACTIVATIONS[activation]
        self.up = linear(d_model, d_ff, bias)
        self.down = linear(d_ff, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GELU(MLP):
    """down(gelu(up x)), the feed-forward of GPT-2 and BERT (Hendrycks 2016, arXiv:1606.08415).

    Args:
        bias: biases in both projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation="gelu", bias=bias)


class ReLU(MLP):
    """down(relu(up x)), the feed-forward of the first transformer (Vaswani 2017, arXiv:1706.03762).

    Args:
        bias: biases in both projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation="relu", bias=bias)


class SquaredReLU(MLP):
    """down(relu(up x)^2), the feed-forward of Primer (So 2021, arXiv:2109.08668).

    Args:
        bias: biases in both projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation="relu2", bias=bias)


class GLU(FeedForward):
    """down(activation(gate x) * up x) with any activation (Shazeer 2020, arXiv:2002.05202).

    Args:
        activation: the function of the gate; `sigmoid` is the first gated linear unit (Dauphin 2016, arXiv:1612.08083),
            `identity` the bilinear one.
        bias: biases in all three projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = "sigmoid", bias: bool = False) -> None:
        super().__init__(d_model, d_ff)
        self.activation = ACTIVATIONS[activation]
        # one matrix for gate and up: one large product is faster than two
        self.gate_up = linear(d_model, 2 * d_ff, bias)
        self.down = linear(d_ff, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class SwiGLU(GLU):
    """down(silu(gate x) * up x), the gated feed-forward of Llama (Shazeer 2020, arXiv:2002.05202).

    Args:
        bias: biases in all three projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation="silu", bias=bias)


class GEGLU(GLU):
    """down(gelu(gate x) * up x), the gated feed-forward of T5 1.1 and Gemma (Shazeer 2020, arXiv:2002.05202).

    Args:
        bias: biases in all three projections.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__(d_model, d_ff, activation="gelu", bias=bias)
