import logging
import math

import depth
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import miniformer
from miniformer.contracts.kit.drawing import layouts, seeds
from miniformer.kernel import Context, Layout, RunError, Window
from miniformer.kernel.masks import Mask
from miniformer.ops import attention_kernels as kernels
from miniformer.ops import blockwise
from miniformer.ops.attention_kernels import KERNELS, choose, eager

H, E, F = 4, 3, 5
weigh = blockwise._weights
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
every_kernel = pytest.mark.parametrize(("kernel", "device"), [(k, d) for k in KERNELS.values() for d in DEVICES],
                                       ids=[f"{k}-{d}" for k in KERNELS for d in DEVICES])


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of two queries, so that small inputs have several."""
    with pytest.MonkeyPatch.context() as patch, miniformer.plain(False):
        patch.setattr(blockwise, "ROWS", 2)
        yield


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def inputs(B, T, S, n_kv_heads, width=F, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(**kwargs)
            for shape in ((B, H, T, E), (B, n_kv_heads, S, E), (B, n_kv_heads, S, width))]


def trains(kernel, device):
    return kernel.trains_on is None or device in kernel.trains_on


@st.composite
def cases(draw):
    """Arguments for a kernel: a mask from a layout and a rule, a bias or none, and shared heads or not."""
    layout, rule, seed = draw(layouts()), draw(st.none() | st.integers(1, 3).map(Window)), draw(seeds)
    (B, T), K, width = layout.shape, draw(st.sampled_from([4, 2, 1])), draw(st.sampled_from([2, E, F]))
    bias = None
    if draw(st.booleans()):
        bias = torch.randn(draw(st.sampled_from([1, B])), H, T, T, dtype=torch.float64)
    torch.manual_seed(seed)
    return layout, rule, draw(st.booleans()), inputs(B, T, T, K, width, seed), bias, draw(st.sampled_from([None, 0.3]))


@given(cases(), st.none() | st.floats(0.5, 3), st.booleans())
def test_eager_is_the_formula(case, softcap, with_sinks):
    layout, rule, causal, (q, k, v), bias, scale = case
    sinks = torch.randn(H, dtype=torch.float64) if with_sinks else None
    found = eager(q, k, v, Context(layout, causal).mask(rule), bias, scale=scale, softcap=softcap, sinks=sinks)
    allowed = oracles.allowed(layout, layout, causal=causal, window=rule and rule.size)
    expected = oracles.attention(q, k, v, allowed, bias, scale=scale, softcap=softcap, sinks=sinks)
    close(found.transpose(1, 2)[layout.real], expected.transpose(1, 2)[layout.real])


@every_kernel
@given(cases(), st.data())
def test_every_kernel_gives_what_eager_gives(kernel, device, case, data):
    layout, rule, causal, (q, k, v), bias, scale = case
    asked = {"scale": scale}
    if "softcap" in kernel.abilities:
        asked["softcap"] = data.draw(st.none() | st.floats(0.5, 3))
    if "sinks" in kernel.abilities:
        asked["sinks"] = data.draw(st.none() | st.just(torch.linspace(-1, 1, H, dtype=torch.float64)))
    mask = Context(layout, causal).mask(rule)
    there = Context(layout.to(device), causal).mask(rule)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in asked.items()}
    found = kernel.compute(q.to(device), k.to(device), v.to(device), there, None if bias is None else bias.to(device), **moved)
    close(found.cpu(), eager(q, k, v, mask, bias, **asked), 1e-10 if device == "cpu" else 1e-5)


@every_kernel
@given(cases())
@settings(max_examples=depth.examples(15))
def test_every_kernel_that_trains_has_eagers_gradients(kernel, device, case):
    if not trains(kernel, device):
        pytest.skip("no backward here")
    layout, rule, causal, tensors, bias, scale = case
    leaves = [*tensors, *([bias] if bias is not None and "bias gradient" in kernel.abilities else [])]
    results = []
    for compute, where in ((kernel.compute, device), (eager, "cpu")):
        here = [leaf.detach().to(where).requires_grad_() for leaf in leaves]
        given_bias = here[3] if len(here) > 3 else None if bias is None else bias.to(where)
        out = compute(*here[:3], Context(layout.to(where), causal).mask(rule), given_bias, scale=scale)
        results.append([g.cpu() for g in torch.autograd.grad(out.square().sum(), here)])
    for found, expected in zip(*results):
        close(found, expected, 1e-9 if device == "cpu" else 1e-4)


@every_kernel
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_row_that_may_look_at_nothing_is_zero_and_so_are_its_gradients(kernel, device, with_bias):
    q, k, v = inputs(1, 2, 3, 2, device=device)
    mask = Mask(torch.tensor([[[[True, False, True], [False, False, False]]]], device=device))
    bias = torch.ones(1, H, 2, 3, dtype=torch.float64, device=device) if with_bias else None
    assert not kernel.compute(q, k, v, mask, bias)[:, :, 1].any()
    if trains(kernel, device):
        q.requires_grad_()
        kernel.compute(q, k, v, mask, bias).sum().backward()
        assert not q.grad[:, :, 1].any() and q.grad[:, :, 0].any()


@every_kernel
def test_an_empty_mask_lets_everything_be_seen(kernel, device):
    q, k, v = inputs(2, 2, 3, 4, device=device)
    close(kernel.compute(torch.zeros_like(q), k, v, Mask()), v.mean(dim=2, keepdim=True).expand(-1, -1, 2, -1))


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS.values() if "dropout" in kernel.abilities],
                         ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("T", [1, 65])
def test_dropout_takes_weights_away_and_keeps_the_expectation(kernel, T):
    q, k, v = torch.zeros(200, 1, T, 2), torch.zeros(200, 1, 4, 2), torch.ones(200, 1, 4, 1)
    out = kernel.compute(q, k, v, Mask(), dropout=0.5)
    assert {round(value, 4) for value in out.flatten().tolist()} == {0, 0.5, 1, 1.5, 2}
    assert float(out.mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("packed", [False, True])
def test_blockwise_of_many_queries_is_what_sdpa_gives(monkeypatch, dtype, atol, packed):
    monkeypatch.setattr(blockwise, "ROWS", 64)
    layout = Layout.from_documents(torch.tensor([[1] * 100 + [2] * 60 + [3] * 140])) if packed else Layout.full(2, 300)
    tensors = [t.requires_grad_() for t in inputs(len(layout.positions), 300, 300, 2, width=E, dtype=dtype)]
    mask = Context(layout, causal=True).mask()
    outs = [KERNELS[name].compute(*tensors, mask) for name in ("blockwise", "sdpa")]
    close(outs[0], outs[1], atol)
    for found, expected in zip(*(torch.autograd.grad(out.sin().sum(), tensors) for out in outs), strict=True):
        close(found, expected, 10 * atol)


def test_blockwise_has_no_second_derivative_and_says_so():
    q, k, v = (t.requires_grad_() for t in inputs(1, 5, 5, H))
    out = KERNELS["blockwise"].compute(q, k, v, Mask(causal=True))
    with pytest.raises(RuntimeError, match="no second derivative; for one, choose kernel 'eager'"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_blockwise_takes_what_autocast_leaves_in_two_precisions():
    q, k, v = (t.float().requires_grad_() for t in inputs(1, 5, 5, H))
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = (KERNELS[name].compute(q, k, v.bfloat16(), Mask(causal=True)) for name in ("blockwise", "eager"))
    close(out.float(), expected.float(), 3e-2)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32 and bool(q.grad.any())


def test_transforms_of_functions_go_through_many_queries():
    q, k, v = inputs(1, 70, 70, H)

    def jacobian(kernel):
        return torch.func.jacrev(lambda q: kernel.compute(q, k, v, Mask(causal=True)).sum(dim=(1, 2)))(q)

    close(jacobian(KERNELS["fused"]), jacobian(KERNELS["eager"]))


@pytest.mark.parametrize("with_bias", [False, True])
def test_what_a_compiled_graph_calls_instead_of_blockwise_is_a_sound_operator(with_bias):
    q, k, v = (t.flatten(0, 1).requires_grad_() for t in inputs(2, 5, 5, H))
    bias = torch.randn(1, H, 5, 5, dtype=torch.float64).requires_grad_() if with_bias else None
    for allowed, causal in ((None, True), (torch.rand(2, 1, 5, 5) > 0.3, False)):
        torch.library.opcheck(blockwise._attend_operator, (q, k, v, bias, allowed, causal, H, 0.5),
                              test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_blockwise_looks_at_no_key_that_none_of_a_block_may_see(monkeypatch):
    looked_at = []
    monkeypatch.setattr(blockwise, "_weights",
                        lambda q, k, *rest: looked_at.append((q.shape[1], k.shape[1])) or weigh(q, k, *rest))
    q, k, v = inputs(1, 6, 6, H)
    documents = Layout.from_documents(torch.tensor([[1, 1, 2, 2, 2, 2]]))
    KERNELS["blockwise"].compute(q, k, v, Mask(causal=True))
    KERNELS["blockwise"].compute(q, k, v, Context(documents, causal=True).mask())
    assert looked_at == [(2, 2), (2, 4), (2, 6), (2, 2), (2, 2), (2, 4)]


@pytest.mark.parametrize(("dtype", "T", "training", "name"), [
    (torch.float32, 64, True, "sdpa"), (torch.float32, 65, True, "blockwise"), (torch.bfloat16, 16, True, "blockwise"),
    (torch.float32, 1, False, "sdpa"), (torch.bfloat16, 1, False, "sdpa")])
def test_fused_takes_the_faster_of_both(monkeypatch, dtype, T, training, name):
    took = []
    for one in ("blockwise", "sdpa"):
        monkeypatch.setattr(kernels, one, lambda *args, one=one, **asked: took.append(one))
    q, k, v = inputs(1, T, 65, H, dtype=dtype)
    KERNELS["fused"].compute(q.requires_grad_(training), k, v, Mask())
    KERNELS["fused"].compute(q, k, v, Mask(), dropout=0.5)
    assert took == [name, "sdpa"]


def test_flex_says_that_it_cannot_train_on_a_cpu():
    q, k, v = inputs(1, 2, 2, 4, width=E)
    with pytest.raises(RunError, match="kernel 'flex' has no backward on a CPU; train on a GPU, or with kernel 'auto'"):
        KERNELS["flex"].compute(q.requires_grad_(), k, v, Mask())


def test_flex_is_imported_when_it_is_used(fresh_python):
    assert fresh_python("""
import sys
import miniformer.model.attention
print('torch.nn.attention.flex_attention' in sys.modules)""") == "False"


# --- which one

@pytest.mark.parametrize(("needs", "name"), [
    ({}, "fused"), ({"dropout": 0.1}, "fused"), ({"softcap": 30.0}, "eager"), ({"sinks": True}, "eager"),
    ({"dropout": 0.0, "softcap": None, "sinks": False}, "fused"), ({"softcap": 1.0, "dropout": 0.1}, "eager")])
def test_auto_is_the_fastest_that_can_and_that_trains_everywhere(needs, name):
    assert choose("auto", **needs).name == name


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_named_is_taken(name):
    assert choose(name) is KERNELS[name]


@pytest.mark.parametrize(("name", "needs", "text"), [
    ("sdpa", {"softcap": 30.0, "sinks": True}, "kernel 'sdpa' cannot do softcap and sinks; eager and flex can"),
    ("flex", {"dropout": 0.1}, "kernel 'flex' cannot do dropout; fused and sdpa and eager can"),
    ("sdpa", {"dropout": 0.1, "sinks": True}, "kernel 'sdpa' cannot do sinks; eager can"),
])
def test_a_kernel_that_cannot_do_what_is_needed_is_refused(name, needs, text):
    with pytest.raises(ValueError, match=text):
        choose(name, **needs)


def test_a_slower_kernel_is_logged_once_with_the_reason(caplog):
    kernels._warn_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            choose("auto", softcap=30.0)
            choose("auto")
    assert [record.getMessage() for record in caplog.records] == [
        "attention kernel 'eager' instead of the faster 'fused', which cannot do softcap"]


def test_scores_are_capped_by_a_tanh():
    q, k = torch.full((1, 1, 1, 1), 3.0), torch.tensor([[[[1.0], [2.0]]]])
    weights = eager(q, k, torch.eye(2)[None, None], Mask(), scale=1.0, softcap=2.0)[0, 0, 0]
    assert float(torch.log(weights[1] / weights[0])) == pytest.approx(2 * math.tanh(3) - 2 * math.tanh(1.5), abs=1e-6)


def test_a_large_sink_takes_all_the_weight():
    q, k, v = inputs(1, 2, 2, 4)
    sinks = torch.tensor([1e4, -1e4, 0, 0], dtype=torch.float64)
    found, plain = eager(q, k, v, Mask(), sinks=sinks), eager(q, k, v, Mask())
    assert not found[:, 0].any()
    close(found[:, 1], plain[:, 1])


@torch.no_grad()
def test_kernels_take_half_precision():
    layout = Layout.from_lengths([2, 3])
    for kernel in KERNELS.values():
        q, k, v = (t.bfloat16() for t in inputs(2, 3, 3, 2))
        assert kernel.compute(q, k, v, Context(layout).mask(), torch.zeros(1, H, 3, 3)).dtype == torch.bfloat16
