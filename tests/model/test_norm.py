import pytest
import torch

from miniformer.model.norm import LayerNorm, RMSNorm


def row_by_row(x, formula):
    return torch.stack([formula(row) for row in x.flatten(0, -2)]).view_as(x)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rmsnorm_divides_by_the_root_mean_square(eps):
    module, x = RMSNorm(5, eps=eps).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    torch.nn.init.normal_(module.weight)
    expected = row_by_row(x, lambda row: row / (sum(v * v for v in row) / 5 + eps).sqrt() * module.weight)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("bias", [False, True])
def test_layernorm_gives_zero_mean_and_unit_variance_then_scales_and_shifts(bias, eps):
    module, x = LayerNorm(5, eps=eps, bias=bias).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)

    def formula(row):
        mean = sum(row) / 5
        out = (row - mean) / (sum((v - mean) ** 2 for v in row) / 5 + eps).sqrt() * module.weight
        return out + module.bias if bias else out

    torch.testing.assert_close(module(x), row_by_row(x, formula), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("module", "names"), [
    (RMSNorm(5), {"weight"}), (LayerNorm(5), {"weight", "bias"}), (LayerNorm(5, bias=False), {"weight"})])
def test_parameters_are_those_that_are_named(module, names):
    assert {name for name, _ in module.named_parameters()} == names
