"""How the built-in components make and initialise their layers."""

from __future__ import annotations

from torch import nn

RESIDUAL = 0.2
"""Factor of the last matrix of a residual branch when training starts, so that a token's own embedding dominates the stream
at first. GPT-2 divides by the square root of its 24 branches, which is this factor; a component does not know the depth."""


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
    """Dropout; if the rate is 0, the identity, which costs less in a decoding step."""
    return nn.Dropout(rate) if rate else nn.Identity()


def embedding(n: int, d_model: int) -> nn.Embedding:
    """A table of n vectors of expected length 1, so that as the matrix of a tied head it gives logits of variance 1."""
    table = nn.Embedding(n, d_model)
    nn.init.normal_(table.weight, std=d_model ** -0.5)
    return table
