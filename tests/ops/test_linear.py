import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from depth import every
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._inductor.compile_fx import compile_fx
from torch.autograd import forward_ad

import miniformer
from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.drawing import seeds
from miniformer.kernel import Context
from miniformer.model.transformer import Transformer
from miniformer.ops import linear as products
from miniformer.ops.linear import _Linear, linear, pack, speed_up

available = pytest.mark.skipif(not products.AVAILABLE, reason="torch's own way is the only one here")


@pytest.fixture(autouse=True, scope="module")
def small_is_enough():
    with pytest.MonkeyPatch.context() as patch, miniformer.plain(False):
        patch.setattr(products, "ENOUGH", 1)
        patch.setattr(products, "LARGE", 1)
        as_with(patch, wide=True)
        yield


def as_with(patch, wide):
    """Rows go the ways of a processor with AVX512, or with AVX2 alone, whichever this one has."""
    for name, value in zip(("WIDE", "FEW", "MOST"), (True, 2, float("inf")) if wide else (False, 8, 256), strict=True):
        patch.setattr(products, name, value)


@pytest.fixture
def taken(monkeypatch):
    """The shapes of what was not multiplied torch's own way."""
    shapes, fits = [], products._fits

    def noting(x, weight):
        if found := fits(x, weight):
            shapes.append(tuple(x.shape))
        return found

    monkeypatch.setattr(products, "_fits", noting)
    return shapes


def inputs(*shape, bias=True, out=6, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*shape, 3), (out, 3), *([(out,)] if bias else [])]
    return [torch.randn(*one, generator=generator).to(**kwargs) for one in shapes]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 6), st.booleans(), seeds)
def test_value_and_gradients_are_those_of_a_linear_layer(shape, out, bias, seed):
    tensors = inputs(*shape, bias=bias, out=out, seed=seed)
    with torch.no_grad():
        torch.testing.assert_close(linear(*tensors), F.linear(*tensors))
    leaves = [t.requires_grad_() for t in tensors]
    found, expected = linear(*leaves), F.linear(*leaves)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(result.sin().sum(), leaves) for result in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@available
@pytest.mark.parametrize(("wide", "rows", "out", "grad", "way"), [
    (True, 1, 6, False, "baddbmm"), (True, 2, 6, False, "baddbmm"), (True, 3, 6, False, "_linear_pointwise"),
    (True, 999, 6, False, "_linear_pointwise"), (True, 3, 6, True, "_Linear"), (True, 1, 6, True, "addmm"),
    (True, 1, 5, False, "addmm"),
    (False, 1, 6, False, "baddbmm"), (False, 8, 6, False, "baddbmm"), (False, 9, 6, False, "_linear_pointwise"),
    (False, 999, 6, False, "addmm"), (False, 9, 6, True, "addmm"), (False, 8, 5, False, "addmm")])
def test_each_number_of_rows_goes_its_way(wide, rows, out, grad, way, monkeypatch):
    as_with(monkeypatch, wide)
    x, weight, bias = inputs(rows, out=out)
    with torch.set_grad_enabled(grad), torch.profiler.profile() as seen:
        found = linear(x.requires_grad_(), weight, bias)
    assert {event.name for event in seen.events()} & {f"aten::{way}", f"mkldnn::{way}", way}
    torch.testing.assert_close(found, F.linear(x, weight, bias))


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
    linear(*tensors).sum().backward()
    assert taken and [tensor.grad is None for tensor in tensors] == [i == frozen for i in range(3)]


@pytest.mark.parametrize("kwargs", [{"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}])
def test_other_types_and_devices_are_left_alone(taken, kwargs):
    assert linear(*inputs(4, **kwargs)).shape == (4, 6) and not taken


def test_autocast_and_function_transforms_are_left_alone(taken):
    x, weight = inputs(4, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert torch.vmap(lambda row: linear(row.expand(4, 3), weight))(x).shape == (4, 4, 6) and not taken


def test_a_tangent_goes_through_what_is_frozen(taken):
    x, weight = inputs(4, bias=False)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)).tangent
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
    assert not taken


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_traced_or_exported_has_torchs_own_operators():
    x, layer = torch.randn(4, 3), nn.Linear(3, 6)
    speed_up(layer)
    with torch.no_grad():
        assert "mkldnn" not in str(torch.jit.trace(layer, x).graph)
        exported = torch.export.export(layer, (x,))
    assert "aten.linear" in str(exported.graph) and "miniformer" not in str(exported.graph)


@available
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_trains_with_it_whoever_made_its_layers(taken, checkpointing, monkeypatch):
    config = TransformerConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=2, causal=True,
                               activation_checkpointing=checkpointing)
    torch.manual_seed(0)
    model, ids = Transformer(config), torch.randint(7, (2, 6))
    model.stack.blocks[0].ffn.down = nn.Linear(32, 8)
    speed_up(model)

    def gradients():
        model.zero_grad()
        model(ids, Context.plain(ids)).sin().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    found, used = gradients(), len(taken)
    monkeypatch.setattr(products, "AVAILABLE", False)
    for one, other in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert used > 2 * 6 and len(taken) == used


@pytest.fixture
def packed():
    """A layer whose matrix is packed."""
    layer = nn.Linear(3, 6)
    speed_up(layer)
    pack(layer)
    return layer


@available
@pytest.mark.parametrize("wide", [True, False])
def test_a_packed_matrix_is_packed_once_and_multiplies_alike(packed, wide, monkeypatch):
    as_with(monkeypatch, wide)
    seen, onednn, x = [], products.onednn_linear, torch.randn(4, 3)
    monkeypatch.setattr(products, "onednn_linear", lambda x, weight, *rest: (seen.append(weight), onednn(x, weight, *rest))[1])
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))
            pack(packed)  # again
    packed(x).sum().backward()
    first, second, *training = seen
    assert first is second and first.is_mkldnn and bool(training) == wide and not any(one.is_mkldnn for one in training)


@available
def test_a_matrix_that_has_changed_is_packed_again(packed):
    x = torch.randn(4, 3)
    with torch.no_grad():
        for change in (lambda: None, lambda: packed.weight.mul_(2),
                       lambda: packed.load_state_dict(nn.Linear(3, 6).state_dict()),
                       lambda: setattr(packed.weight, "data", torch.ones(6, 3)), lambda: speed_up(packed.double().float())):
            change()
            torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))


@available
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_a_matrix_that_a_fused_step_changed_unseen_is_packed_again(packed, make):
    x, optimizer = torch.randn(4, 3), make(packed.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))
        packed(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))


@available
def test_what_is_packed_goes_with_its_matrix_and_is_not_copied():
    layer = nn.Linear(3, 6)
    pack(layer)
    other, key = copy.deepcopy(layer), id(layer.weight)
    assert key in products._packed and id(other.weight) not in products._packed
    del layer
    gc.collect()
    assert key not in products._packed


@available
@pytest.mark.slow
@pytest.mark.parametrize(("rows", "ways", "is_packed"), every(
    3, [(rows, {"product": 1} if rows > 1 else {}, packed) for rows in (1, 2, 4) for packed in (False, True)]))
def test_in_a_graph_one_row_is_left_to_it_and_more_are_not(rows, ways, is_packed):
    layer = nn.Linear(3, 6)
    speed_up(layer)
    if is_packed:
        pack(layer)
    x, found = torch.randn(rows, 1, 3), {}

    def looking(graph, inputs):
        for node in graph.graph.nodes:
            if "miniformer" in str(node.target):
                found["product"] = found.get("product", 0) + 1
        return compile_fx(graph, inputs)

    with torch.no_grad():
        compiled = torch.compile(lambda x: layer(x.relu()) + 1, backend=looking, fullgraph=True)
        torch.testing.assert_close(compiled(x), F.linear(x.relu(), layer.weight, layer.bias) + 1)
        layer.weight.mul_(2)
        torch.testing.assert_close(compiled(x), F.linear(x.relu(), layer.weight, layer.bias) + 1)
    assert found == ways


def test_a_layer_stays_what_it_is(taken):
    layer, heard = nn.Linear(3, 6), []
    before = layer.state_dict()
    speed_up(layer)
    assert type(layer) is nn.Linear and layer.state_dict().keys() == before.keys()
    layer.register_full_backward_hook(lambda module, into, out: heard.append(out[0].shape))
    layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert heard == [(4, 6)] and bool(taken) == products.AVAILABLE


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_weights_of_its_own(copied):
    layer = nn.Linear(3, 6)
    speed_up(layer)
    other = copied(layer)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.randn(4, 3)
    assert not layer(x).any() and other(x).any()
    torch.testing.assert_close(other(x), F.linear(x, other.weight, other.bias))
