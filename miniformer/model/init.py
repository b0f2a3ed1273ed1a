"""How the built-in components make and initialise their layers."""

from __future__ import annotations

from torch import nn

RESIDUAL = 0.2
"""How much smaller the last matrix of a residual branch starts, so that at first a token's own embedding dominates the
stream. GPT-2 divides by the square root of the number of branches, which for its 24 is this; a component knows no depth."""


def linear(d_in: int, d_out: int, bias: bool = False, *, scale: float = 1.0) -> nn.Linear:
    """A linear layer with normal weights of variance 2 / (5 d_in) (Nguyen & Salazar 2019, arXiv:1910.05895).

    Args:
        d_in, d_out: widths.
        bias: a bias, which starts at 0.
        scale: factor of the standard deviation.
    """
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=scale * (2 / (5 * d_in)) ** 0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def dropout_of(rate: float) -> nn.Module:
    """Dropout, or the identity where the rate is 0, which is cheaper in a decoding step."""
    return nn.Dropout(rate) if rate else nn.Identity()


def embedding(n: int, d_model: int) -> nn.Embedding:
    """A table of n vectors of expected length 1: as the matrix of a tied head it gives logits of variance 1."""
    table = nn.Embedding(n, d_model)
    nn.init.normal_(table.weight, std=d_model ** -0.5)
    return table
