"""Promises of a norm: it normalises each vector by itself, removes its scale, and does so in low precision too."""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.contracts.kit.case import Case, require, require_equal
from miniformer.contracts.kit.fixed_draws import fixed_draws
from miniformer.contracts.kit.module_runner import RANDOM_TRAINING, set_mode
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.interfaces import Norm


@contract("norm")
def acts_on_each_vector(case: Case) -> None:
    """Each vector, which is the last dimension of the input, is normalised by itself, whatever dimensions come before it, also
    in training with random numbers.

    In training: with statistics over the sequence, earlier tokens depend on later ones; with statistics over the batch, texts
    depend on each other.
    """
    module = case.component()
    fixed = set_mode(case, module, same_shapes=True)
    shape = *case.choose("shape", [(2,), (), (2, 2)]), case.length(3)
    x = case.tensor(*shape, module.d_model)
    with torch.no_grad():
        if fixed:  # in another shape it draws other numbers
            _require_deaf_to_others(case, module, x)
            module.eval()
            case.unseen.add(f"vectors alone in {RANDOM_TRAINING}")
        out = module(x)
        flat = module(x.flatten(0, -2))
        require_equal(flat, out.flatten(0, -2), "vectors in another shape")
        for i in case.indices("vectors", len(flat)):
            require_equal(module(x.flatten(0, -2)[i][None])[0], flat[i], f"vector {i} alone and beside others")


def _require_deaf_to_others(case: Case, module: Norm, x: Tensor) -> None:
    """Require that a vector has the same output beside others, where each pass draws the same random numbers."""
    vectors, others = x.flatten(0, -2), case.tensor(*x.shape).flatten(0, -2)
    with fixed_draws():
        out = module(x).flatten(0, -2)
    for i in case.indices("vectors beside others", len(vectors)):
        changed = others.clone()
        changed[i] = vectors[i]
        with fixed_draws():
            beside = module(changed.view_as(x)).flatten(0, -2)
        require_equal(beside[i], out[i], f"vector {i} beside others, in training mode")


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
