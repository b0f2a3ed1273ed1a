import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context
from miniformer.model import products
from miniformer.model.products import _Linear, fast_products, product
from miniformer.model.transformer import Transformer

available = pytest.mark.skipif(not products._available(), reason="oneDNN is not the faster one here")


@pytest.fixture
def taken(monkeypatch):
    """The shapes of the products that oneDNN computed, however small."""
    shapes = []
    monkeypatch.setattr(products, "ENOUGH", 1)
    takes = products._takes

    def noting(*given):
        if found := takes(*given):
            shapes.append(tuple(given[0].shape))
        return found

    monkeypatch.setattr(products, "_takes", noting)
    return shapes


def inputs(*shape, bias=True, **kwargs):
    torch.manual_seed(0)
    return [torch.randn(*shape, 3, **kwargs), torch.randn(5, 3, **kwargs), *([torch.randn(5, **kwargs)] if bias else [])]


@available
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)])
def test_value_and_gradients_are_those_of_a_linear_layer(taken, shape, bias):
    tensors = [t.requires_grad_() for t in inputs(*shape, bias=bias)]
    expected = F.linear(*tensors)
    with fast_products(100):
        found = F.linear(*tensors)
    assert taken and isinstance(found.grad_fn, _Linear._backward_cls)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(out.sin().sum(), tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@available
def test_gradients_of_gradients_are_there():
    x, weight = (t.requires_grad_() for t in inputs(4, bias=False))
    grads = [torch.autograd.grad(compute(x, weight).pow(3).sum(), x, create_graph=True)[0]
             for compute in (lambda x, w: _Linear.apply(x, w, None), F.linear)]
    for one, other in zip(*(torch.autograd.grad(grad.sum(), [x, weight]) for grad in grads), strict=True):
        torch.testing.assert_close(one, other)


@available
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(taken, frozen):
    tensors = inputs(4)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i != frozen)
    with fast_products(4):
        F.linear(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [i == frozen for i in range(3)]


@available
@pytest.mark.parametrize("tensors", [inputs(3), inputs(4, dtype=torch.float64), inputs(4, dtype=torch.bfloat16),
                                     inputs(4, device="meta")])
def test_few_rows_other_types_and_devices_are_left_alone(taken, tensors):
    with fast_products(100):
        assert F.linear(*tensors).shape == (len(tensors[0]), 5)
    assert not taken


@available
def test_autocast_and_function_transforms_are_left_alone(taken):
    x, weight = inputs(4, bias=False)
    with fast_products(4):
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(x, weight).dtype == torch.bfloat16
        rows = torch.vmap(lambda row: F.linear(row.expand(4, 3), weight))(x)
    assert rows.shape == (4, 4, 5) and not taken


def test_a_machine_without_it_computes_as_ever(monkeypatch):
    monkeypatch.setattr(products, "_available", lambda: False)
    x, weight, bias = inputs(4)
    with fast_products(4):
        assert torch.equal(F.linear(x, weight, bias), product(x, weight, bias))


@available
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_trains_with_it_whatever_its_components_are(taken, checkpointing, monkeypatch):
    config = TransformerConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=2, causal=True,
                               activation_checkpointing=checkpointing)
    torch.manual_seed(0)
    model = Transformer(config)
    ids = torch.randint(7, (2, 6))

    def gradients():
        model.zero_grad()
        model(ids, Context.plain(ids)).sin().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    found = gradients()
    assert len(taken) > 2 * 6
    monkeypatch.setattr(products, "_available", lambda: False)
    for one, other in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, other)


@available
def test_a_layer_with_hooks_is_heard(taken):
    layer, heard = nn.Linear(3, 5), []
    layer.register_full_backward_hook(lambda module, into, out: heard.append(out[0].shape))
    with fast_products(4):
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert taken and heard == [(4, 5)]
