import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.contracts.kit.drawing import layouts, seeds
from miniformer.kernel import Context, Layout, PositionEncoding, StateError
from miniformer.kernel.context import Signal
from miniformer.model import linear_attention
from miniformer.model.linear_attention import LinearAttention
from miniformer.model.rotary import Rotary

D, H, E = 8, 2, 4
chunks = st.sampled_from([1, 2, 3, 64])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def linear(seed=0, **options):
    torch.manual_seed(seed)
    return LinearAttention(D, H, **options).double()


def chunked(monkeypatch, size):
    monkeypatch.setattr(linear_attention, "CHUNK", size)


def feature(x):
    return torch.tensor([value + 1 if value > 0 else math.exp(value) for value in x.tolist()], dtype=x.dtype)


def by_hand(module, x, layout, causal, turned=lambda y: y):
    """Weights and their sum for each pair of tokens that may meet."""
    q, k, v = (y.unflatten(-1, (H, E)).transpose(1, 2) for y in module.qkv(x).split(D, dim=-1))
    q, k = (torch.stack([feature(row) for row in y.flatten(0, 2)]).view_as(y) for y in (q, k))
    turned_q, turned_k, out, allowed = turned(q), turned(k), torch.zeros_like(v), oracles.allowed(layout, layout, causal=causal)
    B, T = layout.shape
    for b, h, t in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(T)).tolist():
        seen = [s for s in range(T) if allowed[b][t][s]]
        total = sum(float(q[b, h, t] @ k[b, h, s]) for s in seen)
        out[b, h, t] = sum(turned_q[b, h, t] @ turned_k[b, h, s] * v[b, h, s] for s in seen) / total
    return module.out(out.transpose(1, 2).flatten(2))


@given(layouts(), chunks, st.booleans(), st.booleans(), st.booleans(), seeds)
@torch.no_grad()
def test_it_weighs_values_by_products_of_features(layout, chunk, causal, turn, bias, seed):
    with pytest.MonkeyPatch.context() as patch:
        chunked(patch, chunk)
        module, encoding = linear(seed, bias=bias), Rotary(D, H, 16) if turn else PositionEncoding(D, H, 16)
        x, where = torch.randn(*layout.shape, D, dtype=torch.float64), encoding.precompute(layout.positions)
        found = module(x, Context(layout, causal, signal=Signal(encoding, where, None)))
        expected = by_hand(module, x, layout, causal, lambda y: encoding.rotate(y, where, "q"))
        close(found[layout.real], expected[layout.real])


@given(layouts(max_length=7), st.sets(st.integers(1, 6)), chunks, seeds)
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(layout, cuts, chunk, seed):
    with pytest.MonkeyPatch.context() as patch:
        chunked(patch, chunk)
        module, encoding, (B, T) = linear(seed), Rotary(D, H, 16), layout.shape
        x = torch.randn(B, T, D, dtype=torch.float64)
        whole = module(x, Context(layout, True, signal=Signal(encoding, encoding.precompute(layout.positions), None)))
        state, out, keys = module.init_state(B, T), [], None
        cuts = sorted(cut for cut in cuts if cut < T)
        for start, stop in zip([0, *cuts], [*cuts, T]):
            piece = Layout(layout.positions[:, start:stop], layout.documents[:, start:stop])
            keys = piece if keys is None else keys.append_columns(piece)
            signal = Signal(encoding, encoding.precompute(piece.positions), None)
            out.append(module(x[:, start:stop], Context(piece, True, keys, signal=signal), state))
        close(torch.cat(out, dim=1)[layout.real], whole[layout.real])
        assert state.length == T


@pytest.mark.parametrize("causal", [True, False])
def test_other_documents_and_padding_give_no_gradient(causal):
    layout = Layout.from_documents(torch.tensor([[1, 1, 2, 2, 0, 3]]))
    x = torch.randn(1, 6, D, dtype=torch.float64, requires_grad=True)
    linear()(x, Context(layout, causal))[0, 2:4].sum().backward()
    assert x.grad[0, 2:4].abs().amin() > 0
    assert not x.grad[0, [0, 1, 4, 5]].any()


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_documents_longer_than_a_chunk_give_what_each_gives_alone(causal):
    module, lengths = linear(), [linear_attention.CHUNK + 7, linear_attention.CHUNK + 7, 5]
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, start=1)])
    x = torch.randn(1, sum(lengths), D, dtype=torch.float64)
    whole = module(x, Context(Layout.from_documents(documents[None]), causal))
    for piece, out in zip(x.split(lengths, dim=1), whole.split(lengths, dim=1), strict=True):
        close(out, module(piece, Context(Layout.full(1, piece.shape[1]), causal)))


def test_documents_may_come_in_any_order():
    x = torch.randn(1, 5, D, dtype=torch.float64)
    one, other = (Layout.from_documents(torch.tensor([row])) for row in ([1, 1, 2, 2, 2], [7, 7, 3, 3, 3]))
    close(linear()(x, Context(other, True)), linear()(x, Context(one, True)))


def test_its_state_does_not_grow():
    module = linear()
    state = module.init_state(3, 10)
    assert state.nbytes == module.init_state(3, 1000).nbytes == 3 * H * E * (E + 1) * 8 + 3 * 8
    module(torch.randn(3, 4, D, dtype=torch.float64), Context(Layout.full(3, 4), True), state)
    assert state.nbytes == 3 * H * E * (E + 1) * 8 + 3 * 8


def test_its_state_cannot_go_back():
    state = linear().init_state(1, 8)
    linear()(torch.randn(1, 4, D, dtype=torch.float64), Context(Layout.full(1, 4), True), state)
    state.truncate(4)
    with pytest.raises(StateError, match="sums cannot go back from 4 tokens to 3; start again with an empty state"):
        state.truncate(3)
    assert state.length == 4


def test_it_applies_rotations_and_no_bias_and_asks_for_no_mask():
    assert (LinearAttention.applies, LinearAttention.masked, LinearAttention.cross) == (frozenset({"rotate"}), False, False)
    x, context = torch.randn(2, 3, D, dtype=torch.float64), Context(Layout.from_lengths([2, 3]), True)
    linear()(x, context)
    assert not context.masks


@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_sums_in_single(causal):
    module, x = LinearAttention(D, H), torch.randn(1, 200, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x, Context(Layout.full(1, 200), causal))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), module(x, Context(Layout.full(1, 200), causal)), rtol=0, atol=0.01)
    assert module.bfloat16().init_state(1, 4).sums.dtype == torch.float32


def test_features_that_vanish_do_not_divide_by_zero():
    module = LinearAttention(D, H)
    torch.nn.init.constant_(module.qkv.weight, -100.0)
    assert torch.isfinite(module(torch.ones(1, 3, D))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_vanish_have_finite_gradients(dtype):
    """Of one width, so that half of all features are exp(-10000), which is 0."""
    torch.manual_seed(0)
    module = LinearAttention(2, 2).to(dtype)
    x = (1e4 * torch.randn(2, 40, 2, dtype=dtype)).requires_grad_()
    module(x, Context(Layout.full(2, 40), causal=True)).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="d_model 10 must be a multiple of n_heads 4"):
        LinearAttention(10, 4)
