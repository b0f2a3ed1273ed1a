import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.drawing import layouts, seeds
from miniformer.kernel import (
    Attention,
    ComponentSpec,
    Context,
    Layout,
    Memory,
    PositionEncoding,
    StateError,
    build,
    current_registry,
    resolve,
)
from miniformer.kernel.context import Signal
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.rotary import Rotary
from miniformer.model.transformer import Transformer

D, H, E = 8, 4, 2
heads = st.sampled_from([4, 2, 1])
windows = st.none() | st.integers(1, 4)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def mha(seed=0, **options):
    torch.manual_seed(seed)
    return MultiHeadAttention(D, H, **options).double()


def by_hand(module, x, allowed, source=None, turned=lambda y: y, scale=None):
    """What the module should give, from its weights and a loop over heads and tokens."""
    source, K, E = x if source is None else source, module.n_kv_heads, module.d_head

    def heads_of(y, linear, first, n):
        out = torch.nn.functional.linear(y, linear.weight, linear.bias)[..., first * E:(first + n) * E]
        return out.unflatten(-1, (n, E)).transpose(1, 2)

    out = oracles.attention(turned(heads_of(x, module.q, 0, H)), turned(heads_of(source, module.kv, 0, K)),
                            heads_of(source, module.kv, K, K), allowed, scale=scale)
    return module.out(out.transpose(1, 2).flatten(2))


@given(layouts(), heads, windows, st.booleans(), st.booleans(), seeds)
@torch.no_grad()
def test_it_is_softmax_attention_at_every_real_token(layout, n_kv_heads, window, bias, causal, seed):
    module = mha(seed, n_kv_heads=n_kv_heads, window=window, bias=bias)
    x = torch.randn(*layout.shape, D, dtype=torch.float64)
    expected = by_hand(module, x, oracles.allowed(layout, layout, causal=causal, window=window))
    close(module(x, Context(layout, causal))[layout.real], expected[layout.real])


@given(layouts(rows=2), layouts(rows=2), heads, seeds)
@torch.no_grad()
def test_it_reads_a_memory(layout, memory, n_kv_heads, seed):
    module = mha(seed, n_kv_heads=n_kv_heads)
    x, hidden = (torch.randn(*which.shape, D, dtype=torch.float64) for which in (layout, memory))
    allowed = oracles.allowed(layout, memory)
    served = layout.real & torch.tensor([[any(row) for row in rows] for rows in allowed])
    found = module(x, Context(layout, causal=True).for_memory(Memory(hidden, memory)))
    close(found[served], by_hand(module, x, allowed, hidden)[served])


@given(layouts(), heads, st.integers(1, 5), st.none() | st.floats(0.1, 2), st.booleans(), seeds)
@torch.no_grad()
def test_heads_have_the_width_and_scores_the_scale_that_are_asked_for(layout, n_kv_heads, d_head, scale, bias, seed):
    module = mha(seed, n_kv_heads=n_kv_heads, d_head=d_head, scale=scale, bias=bias)
    assert module.out.weight.shape == (D, H * d_head)
    x = torch.randn(*layout.shape, D, dtype=torch.float64)
    expected = by_hand(module, x, oracles.allowed(layout, layout), scale=scale)
    close(module(x, Context(layout))[layout.real], expected[layout.real])


def test_scores_start_alike_whatever_their_scale():
    plain, scaled = mha(), mha(scale=3.0)
    torch.testing.assert_close(scaled.q.weight * 3.0, plain.q.weight * E ** -0.5)


def test_heads_of_another_width_are_rotated_as_a_whole():
    config = TransformerConfig(d_model=12, n_heads=2, n_layers=1, vocab_size=9, causal=True, position="rope",
                               attention={"name": "mha", "d_head": 4})
    stack = Transformer(config).stack
    assert [encoding.width for encoding in stack.positions] == [6, 4] and stack.encoding_of == [1]


@given(layouts(), heads, seeds)
@torch.no_grad()
def test_it_turns_queries_and_keys_by_their_positions(layout, n_kv_heads, seed):
    module, encoding = mha(seed, n_kv_heads=n_kv_heads), Rotary(D, H, 16)
    x = torch.randn(*layout.shape, D, dtype=torch.float64)

    def turned(y_BHTE):
        out = torch.empty_like(y_BHTE)
        for b, row in enumerate(oracles.places(layout)):
            for t, (position, _) in enumerate(row):
                for h in range(out.shape[1]):
                    out[b, h, t] = oracles.rotary(y_BHTE[b, h, t], position)
        return out

    expected = by_hand(module, x, oracles.allowed(layout, layout), turned=turned)
    found = module(x, Context(layout, signal=Signal(encoding, encoding.precompute(layout.positions), None)))
    torch.testing.assert_close(found[layout.real], expected[layout.real], rtol=0, atol=1e-5)  # angles are float32


def test_padding_and_other_documents_give_no_gradient():
    layout = Layout.from_documents(torch.tensor([[1, 1, 2, 2, 0]]))
    x = torch.randn(1, 5, D, dtype=torch.float64, requires_grad=True)
    mha()(x, Context(layout))[0, :2].sum().backward()
    assert x.grad[0, :2].abs().min() > 0
    assert not x.grad[0, 2:].any()


def test_a_window_of_one_sees_the_token_alone():
    module, x = mha(window=1), torch.randn(2, 3, D, dtype=torch.float64)
    alone = torch.stack([module(x[:, t:t + 1])[:, 0] for t in range(3)], dim=1)
    close(module(x), alone)


def test_dropout_acts_in_training_only():
    module, x = mha(dropout=0.5), torch.randn(1, 6, D, dtype=torch.float64)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize(("sizes", "options", "text"), [
    ((10, 4), {}, "d_model 10 must be a multiple of n_heads 4"),
    ((8, 4), {"n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
    ((8, 4), {"kernel": "sdpa", "softcap": 5.0}, "kernel 'sdpa' cannot do softcap"),
    ((8, 4), {"kernel": "sdpa", "sinks": True}, "kernel 'sdpa' cannot do sinks"),
    ((8, 4), {"kernel": "flex", "dropout": 0.1}, "kernel 'flex' cannot do dropout"),
])
def test_what_cannot_be_built_is_refused(sizes, options, text):
    with pytest.raises(ValueError, match=text):
        MultiHeadAttention(*sizes, **options)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_shared_heads_save_parameters_and_state(n_kv_heads):
    module = mha(n_kv_heads=n_kv_heads)
    assert module.kv.weight.shape == (2 * n_kv_heads * E, D)
    assert module.init_state(3, 10).nbytes == 2 * 3 * n_kv_heads * 10 * E * 8


SHORTHANDS = [entry.name for entry in current_registry().entries("attention")
              if current_registry().load("attention", entry.name).shorthand_for]


@pytest.mark.parametrize("name", SHORTHANDS)
def test_a_shorthand_is_what_it_stands_for_under_another_name(name):
    cls, x = current_registry().load("attention", name), torch.randn(1, 3, D)
    meant = ComponentSpec.model_validate(cls.shorthand_for["attention"])
    module, other = build(Attention, meant, D, H), cls(D, H)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x), other(x))
    assert resolve("attention", meant).options == resolve("attention", name).options


@given(layouts(), heads, st.booleans(), seeds)
@torch.no_grad()
def test_queries_and_keys_are_normalised_before_they_are_turned(layout, n_kv_heads, turn, seed):
    module, x = mha(seed, n_kv_heads=n_kv_heads, qk_norm="rmsnorm"), torch.randn(*layout.shape, D, dtype=torch.float64)
    torch.nn.init.normal_(module.q_norm.weight)
    torch.nn.init.normal_(module.k_norm.weight)
    encoding = Rotary(D, H, 16)
    where = encoding.precompute(layout.positions)
    K, kv = n_kv_heads, module.kv(x).unflatten(-1, (2 * n_kv_heads, E)).transpose(1, 2)
    q, k = module.q_norm(module.q(x).unflatten(-1, (H, E)).transpose(1, 2)), module.k_norm(kv[:, :K])
    if turn:
        q, k = encoding.rotate(q, where, "q"), encoding.rotate(k, where, "k")
    expected = module.out(oracles.attention(q, k, kv[:, K:], oracles.allowed(layout, layout)).transpose(1, 2).flatten(2))
    signal = Signal(encoding, where, None) if turn else None
    close(module(x, Context(layout, signal=signal))[layout.real], expected[layout.real])


@given(layouts(), heads, windows, st.booleans(), seeds)
@torch.no_grad()
def test_scores_are_capped_and_sinks_and_biases_take_part(layout, n_kv_heads, window, causal, seed):
    module = mha(seed, n_kv_heads=n_kv_heads, window=window, softcap=0.5, sinks=True)
    torch.nn.init.normal_(module.sinks)
    x, (B, T) = torch.randn(*layout.shape, D, dtype=torch.float64), layout.shape
    bias = torch.randn(B, H, T, T, dtype=torch.float64)
    q = module.q(x).unflatten(-1, (H, E)).transpose(1, 2)
    kv = module.kv(x).unflatten(-1, (2 * n_kv_heads, E)).transpose(1, 2)
    allowed = oracles.allowed(layout, layout, causal=causal, window=window)
    expected = oracles.attention(q, kv[:, :n_kv_heads], kv[:, n_kv_heads:], allowed, bias, softcap=0.5, sinks=module.sinks)
    found = module(x, Context(layout, causal, signal=Signal(PositionEncoding(D, H, 16), None, bias)))
    close(found[layout.real], module.out(expected.transpose(1, 2).flatten(2))[layout.real])


@pytest.mark.parametrize("options", [{"sinks": True}, {"qk_norm": "layernorm"}, {"softcap": 5.0}])
def test_all_its_parameters_are_trained(options):
    module = mha(**options)
    module(torch.randn(2, 4, D, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex"])
@torch.no_grad()
def test_a_named_kernel_computes_it(kernel):
    x, module = torch.randn(2, 4, D, dtype=torch.float64), mha(n_kv_heads=2, kernel=kernel)
    assert module.kernel.name == kernel
    close(module(x), mha(n_kv_heads=2)(x))


# --- decoding state

def feed(module, x, layout, cuts, state, *, encoding=None):
    """The outputs of `x` fed in pieces that end at `cuts`."""
    out, keys = [], None
    for start, stop in zip([0, *cuts], [*cuts, x.shape[1]]):
        piece = Layout(layout.positions[:, start:stop], layout.documents[:, start:stop], layout.padded, layout.packed)
        keys = piece if keys is None else keys.append_columns(piece)
        signal = encoding and Signal(encoding, encoding.precompute(piece.positions), None)
        out.append(module(x[:, start:stop], Context(piece, causal=True, keys=keys, signal=signal), state))
    return torch.cat(out, dim=1)


@given(layouts(max_length=6), st.sets(st.integers(1, 5)), heads, windows, seeds)
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(layout, cuts, n_kv_heads, window, seed):
    module, encoding = mha(seed, n_kv_heads=n_kv_heads, window=window), Rotary(D, H, 16)
    (B, T), cuts = layout.shape, sorted(cut for cut in cuts if cut < layout.shape[1])
    x = torch.randn(B, T, D, dtype=torch.float64)
    whole = module(x, Context(layout, causal=True, signal=Signal(encoding, encoding.precompute(layout.positions), None)))
    state = module.init_state(B, T)
    close(feed(module, x, layout, cuts, state, encoding=encoding)[layout.real], whole[layout.real])
    assert state.length == T


@torch.no_grad()
def test_a_state_reorders_its_rows():
    module, x = mha(), torch.randn(2, 4, D, dtype=torch.float64)
    index = torch.tensor([1, 1, 0])
    state = module.init_state(2, 4)
    feed(module, x[:, :3], Layout.full(2, 3), [], state)
    state.reorder(index)
    follow = Layout.full(3, 1, start=3)
    found = module(x[index, 3:], Context(follow, True, Layout.full(3, 4)), state)
    close(found, module(x[index], Context(Layout.full(3, 4), True))[:, 3:])


@torch.no_grad()
def test_a_truncated_state_goes_on_from_where_it_was_cut():
    module, x = mha(), torch.randn(1, 4, D, dtype=torch.float64)
    state = module.init_state(1, 4)
    feed(module, torch.cat([x[:, :2], torch.randn(1, 2, D, dtype=torch.float64)], 1), Layout.full(1, 4), [], state)
    state.truncate(2)
    assert state.length == 2
    found = module(x[:, 2:], Context(Layout.full(1, 2, start=2), True, Layout.full(1, 4)), state)
    close(found, module(x, Context(Layout.full(1, 4), True))[:, 2:])


def test_truncating_to_more_than_there_is_changes_nothing():
    state = mha().init_state(1, 4)
    state.write([torch.zeros(1, H, 2, E)] * 2)
    state.truncate(3)
    assert state.length == 2


def test_a_state_refuses_more_than_its_capacity_and_stays_as_it_was():
    module = mha()
    state = module.init_state(1, 3)
    feed(module, torch.randn(1, 2, D, dtype=torch.float64), Layout.full(1, 2), [], state)
    with pytest.raises(StateError, match="holds 3 tokens, and 4 were given"):
        feed(module, torch.randn(1, 2, D, dtype=torch.float64), Layout.full(1, 2), [], state)
    assert state.length == 2


@torch.no_grad()
def test_one_module_serves_two_states():
    module, x = mha(), torch.randn(2, 3, D, dtype=torch.float64)
    states = [module.init_state(1, 3) for _ in range(2)]
    found = [[module(x[b:b + 1, t:t + 1], Context(Layout.full(1, 1, start=t), True, Layout.full(1, t + 1)), states[b])
              for t in range(3)] for b in range(2)]
    close(torch.cat([torch.cat(row, dim=1) for row in found]), module(x, Context(Layout.full(2, 3), True)))
