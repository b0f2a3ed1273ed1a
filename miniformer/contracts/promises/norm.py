"""Promises of a norm: it normalises each vector by itself, removes its scale, and does so in low precision too."""

from __future__ import annotations

import torch

from miniformer.contracts.kit.case import Case, require, require_equal
from miniformer.contracts.kit.module_runner import set_mode
from miniformer.contracts.kit.properties import contract


@contract("norm")
def acts_on_each_vector(case: Case) -> None:
    """Each vector, which is the last dimension of the input, is normalised by itself, whatever dimensions come before it.

    In training: with statistics over the sequence, earlier tokens depend on later ones; with statistics over the batch, texts
    depend on each other.
    """
    module = case.component()
    set_mode(case, module)
    shape = *case.choose("shape", [(2,), (), (2, 2)]), case.length(3)
    x = case.tensor(*shape, module.d_model)
    with torch.no_grad():
        out = module(x)
        flat = module(x.flatten(0, -2))
        require_equal(flat, out.flatten(0, -2), "vectors in another shape")
        for i in case.indices("vectors", len(flat)):
            require_equal(module(x.flatten(0, -2)[i][None])[0], flat[i], f"vector {i} alone and beside others")


@contract("norm")
def brings_to_scale(case: Case) -> None:
    """Inputs that are a hundred times as large, or a tenth as large, have outputs of the same size.

    In training: activations grow from layer to layer until they overflow.
    """
    module = case.component(options={}, perturbed=False)
    x, scale = case.tensor(3, module.d_model), case.choose("scale", [100.0, 0.1, 1e4])
    with torch.no_grad():
        usual, scaled = module(x).square().mean().sqrt(), module(x * scale).square().mean().sqrt()
    growth = float(scaled / usual)
    require(0.8 < growth < 1.25, f"inputs {scale:g} times as large come out {growth:.3g} times as large")


@contract("norm")
def keeps_precision(case: Case) -> None:
    """In half precision, inputs of size 1000 have the outputs that they have in float64, up to rounding.

    In training: squares of numbers above 256 overflow in float16, and the norm gives zeros or NaN.

    Seen: transformers#4586, T5 in float16, whose activations overflowed.
    """
    module = case.component()
    dtype = case.choose("dtype", [torch.float16, torch.bfloat16])
    x = (case.tensor(4, module.d_model) * 1000).to(dtype)
    with torch.no_grad():
        expected = module(x.double())
        out = module.to(dtype)(x)
    require(out.dtype == dtype, f"its output is {out.dtype} for {dtype}")
    error = (out.double() - expected).abs().max() / expected.abs().max()
    require(bool(error < 0.05), f"for inputs of size 1000 in {dtype}, outputs are {float(error):.2f} of their size off")
