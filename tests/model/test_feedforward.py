import math

import pytest
import torch

from miniformer.model.feedforward import GELU, ReLU, SwiGLU

ACTIVATIONS = {GELU: lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), ReLU: lambda x: max(0.0, x)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_two_matrices_around_an_activation(cls, bias):
    module = cls(3, 5, bias=bias).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    inner = module.up(x).detach().apply_(ACTIVATIONS[cls])
    torch.testing.assert_close(module(x), module.down(inner), rtol=0, atol=1e-12)
    assert (module.up.bias is not None) == (module.down.bias is not None) == bias


def test_swiglu_is_gated_by_silu():
    module = SwiGLU(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    gate, up = x @ module.gate_up.weight[:5].T, x @ module.gate_up.weight[5:].T
    expected = (gate / (1 + torch.exp(-gate)) * up) @ module.down.weight.T
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "parameters"), [(GELU, 2 * 15), (ReLU, 2 * 15), (SwiGLU, 3 * 15)])
def test_without_biases_there_are_only_matrices(cls, parameters):
    assert sum(p.numel() for p in cls(3, 5).parameters()) == parameters


@pytest.mark.parametrize("cls", [GELU, ReLU, SwiGLU])
def test_each_position_is_worked_on_by_itself(cls):
    module, x = cls(3, 5).double(), torch.randn(1, 4, 3, dtype=torch.float64)
    alone = torch.cat([module(x[:, t:t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(module(x), alone, rtol=0, atol=1e-12)


def test_matrices_start_with_variance_two_over_five_inputs():
    weight = GELU(200, 400).up.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (5 * 200)), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)
