"""How the built-in components initialise their matrices."""

from __future__ import annotations

from torch import nn


def linear(d_in: int, d_out: int, bias: bool = False) -> nn.Linear:
    """A linear layer with normal weights of variance 2 / (5 d_in) (Nguyen & Salazar 2019, arXiv:1910.05895)."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=(2 / (5 * d_in)) ** 0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
