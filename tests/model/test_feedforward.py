import math
from typing import get_args

import pytest
import torch

from miniformer.kernel import Attention, FeedForward, build
from miniformer.model import feedforward
from miniformer.model.feedforward import GEGLU, GELU, GLU, MLP, Activation, ReLU, SquaredReLU, SwiGLU


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


FORMULAS = {
    "gelu": gelu, "relu": lambda x: max(0.0, x), "relu2": lambda x: max(0.0, x) ** 2,
    "gelu-tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
    "silu": lambda x: x / (1 + math.exp(-x)), "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "tanh": math.tanh,
    "elu": lambda x: x if x > 0 else math.exp(x) - 1, "leaky-relu": lambda x: x if x > 0 else 0.01 * x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))), "softplus": lambda x: math.log1p(math.exp(x)),
    "identity": lambda x: x,
}
ACTIVATIONS = {GELU: FORMULAS["gelu"], ReLU: FORMULAS["relu"], SquaredReLU: FORMULAS["relu2"]}
GATED = {SwiGLU: FORMULAS["silu"], GEGLU: FORMULAS["gelu"]}


def test_every_activation_has_its_formula():
    assert set(get_args(Activation)) == set(feedforward.ACTIVATIONS) == set(FORMULAS)
    for name, formula in FORMULAS.items():
        x = torch.linspace(-3, 3, 13, dtype=torch.float64)
        torch.testing.assert_close(feedforward.ACTIVATIONS[name](x), x.clone().apply_(formula), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_mlp_and_glu_take_any_activation(name):
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    mlp, glu = MLP(3, 5, activation=name).double(), GLU(3, 5, activation=name).double()
    torch.testing.assert_close(mlp(x), mlp.down(mlp.up(x).detach().apply_(FORMULAS[name])), rtol=0, atol=1e-12)
    gate, up = glu.gate_up(x).detach().chunk(2, dim=-1)
    torch.testing.assert_close(glu(x), glu.down(gate.clone().apply_(FORMULAS[name]) * up), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_two_matrices_around_an_activation(cls, bias):
    module = cls(3, 5, bias=bias).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    inner = module.up(x).detach().apply_(ACTIVATIONS[cls])
    torch.testing.assert_close(module(x), module.down(inner), rtol=0, atol=1e-12)
    assert (module.up.bias is not None) == (module.down.bias is not None) == bias


@pytest.mark.parametrize("cls", GATED)
def test_a_gate_is_activated_and_multiplies(cls):
    module, x = cls(3, 5).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    gate, up = (x @ module.gate_up.weight[:5].T).detach(), x @ module.gate_up.weight[5:].T
    torch.testing.assert_close(module(x), gate.apply_(GATED[cls]) * up @ module.down.weight.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cls", "parameters"), [
    (GELU, 2 * 15), (ReLU, 2 * 15), (SquaredReLU, 2 * 15), (MLP, 2 * 15), (SwiGLU, 3 * 15), (GEGLU, 3 * 15), (GLU, 3 * 15)])
def test_without_biases_there_are_only_matrices(cls, parameters):
    assert sum(p.numel() for p in cls(3, 5).parameters()) == parameters


@pytest.mark.parametrize("cls", [GELU, ReLU, SquaredReLU, MLP, SwiGLU, GEGLU, GLU])
def test_each_position_is_worked_on_by_itself(cls):
    module, x = cls(3, 5).double(), torch.randn(1, 4, 3, dtype=torch.float64)
    alone = torch.cat([module(x[:, t:t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(module(x), alone, rtol=0, atol=1e-12)


def test_matrices_start_with_variance_two_over_five_inputs():
    weight = GELU(200, 400).up.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (5 * 200)), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("interface", "spec"), [
    (FeedForward, "gelu"), (FeedForward, "swiglu"), (Attention, "mha"), (Attention, "linear"), (Attention, "mla")])
def test_the_last_matrix_of_a_branch_starts_at_a_fifth_so_that_a_token_dominates_the_stream_at_first(interface, spec):
    component = build(interface, spec, 200, 400 if interface is FeedForward else 4)
    last = component.down if interface is FeedForward else component.out
    width = last.weight.shape[1]
    assert float(last.weight.detach().std()) == pytest.approx(0.2 * math.sqrt(2 / (5 * width)), rel=0.02)
