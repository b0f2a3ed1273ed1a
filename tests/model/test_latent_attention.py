import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.contracts.kit.drawing import layouts, seeds
from miniformer.kernel import Context, Layout, Memory, PositionEncoding
from miniformer.kernel.context import Signal
from miniformer.model.latent_attention import LatentAttention
from miniformer.model.rotary import Rotary

D, H, C, L, R = 8, 2, 4, 3, 6
latents = st.sampled_from([None, 2])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def mla(seed=0, **options):
    torch.manual_seed(seed)
    module = LatentAttention(D, H, **{"d_latent": L, "d_rotary": R, **options}).double()
    torch.nn.init.normal_(module.norm.weight)
    return module


def by_hand(module, x, source, allowed, bias=None, turned=lambda y: y):
    """The paper's equations 37 to 47, head by head."""
    q = module.q(module.q_latent(x)).unflatten(-1, (H, C + R))
    down = module.down(source)
    latent, k_rotary = module.norm(down[..., :L]), turned(down[:, None, :, L:])
    heads = []
    for h in range(H):
        k = latent @ module.up.weight[h * C:(h + 1) * C].T
        v = latent @ module.up.weight[D + h * C:D + (h + 1) * C].T
        query = torch.cat([q[:, :, h, :C], turned(q[:, None, :, h, C:])[:, 0]], dim=-1)
        key = torch.cat([k, k_rotary[:, 0]], dim=-1)
        heads.append(oracles.attention(query[:, None], key[:, None], v[:, None], allowed,
                                       None if bias is None else bias[:, h:h + 1])[:, 0])
    return module.out(torch.cat(heads, dim=-1))


@given(layouts(), latents, st.booleans(), st.booleans(), seeds)
@torch.no_grad()
def test_it_is_attention_over_keys_and_values_made_from_latents(layout, d_query_latent, causal, turn, seed):
    module, (B, T) = mla(seed, d_query_latent=d_query_latent), layout.shape
    x = torch.randn(B, T, D, dtype=torch.float64)
    encoding, bias = Rotary(R * H, H, 16), torch.randn(B, H, T, T, dtype=torch.float64)
    where = encoding.precompute(layout.positions)
    encoding_used = encoding if turn else PositionEncoding(D, H, 16)
    expected = by_hand(module, x, x, oracles.allowed(layout, layout, causal=causal), bias,
                       lambda y: encoding_used.rotate(y, where, "q"))
    found = module(x, Context(layout, causal, signal=Signal(encoding_used, where, bias)))
    close(found[layout.real], expected[layout.real])


@given(layouts(rows=2), layouts(rows=2), seeds)
@torch.no_grad()
def test_it_reads_a_memory(layout, memory, seed):
    module = mla(seed)
    x, hidden = (torch.randn(*which.shape, D, dtype=torch.float64) for which in (layout, memory))
    allowed = oracles.allowed(layout, memory)
    served = layout.real & torch.tensor([[any(row) for row in rows] for rows in allowed])
    found = module(x, Context(layout).for_memory(Memory(hidden, memory)))
    close(found[served], by_hand(module, x, hidden, allowed)[served])


class Adapted(torch.nn.Linear):
    """Another matrix than its weight, as an adapter makes it."""

    def forward(self, x):
        return 2 * super().forward(x)


@given(layouts(max_length=6), st.sets(st.integers(1, 5)), st.booleans(), seeds)
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(layout, cuts, adapted, seed):
    module, encoding, (B, T) = mla(seed), Rotary(R * H, H, 16), layout.shape
    if adapted:
        module.up = Adapted(L, 2 * D, bias=False).double()
    x, bias = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, H, T, T, dtype=torch.float64)
    whole = module(x, Context(layout, True, signal=Signal(encoding, encoding.precompute(layout.positions), bias)))
    state, out, keys = module.init_state(B, T), [], None
    cuts = sorted(cut for cut in cuts if cut < T)
    for start, stop in zip([0, *cuts], [*cuts, T]):
        piece = Layout(layout.positions[:, start:stop], layout.documents[:, start:stop])
        keys = piece if keys is None else keys.append_columns(piece)
        signal = Signal(encoding, encoding.precompute(piece.positions), bias[:, :, start:stop, :stop])
        out.append(module(x[:, start:stop], Context(piece, True, keys, signal=signal), state))
    close(torch.cat(out, dim=1)[layout.real], whole[layout.real])


@torch.no_grad()
def test_who_listens_to_its_matrix_is_heard_in_decoding_too():
    module, x = mla(), torch.randn(1, 3, D, dtype=torch.float64)
    module.up.register_forward_hook(lambda _, args, out: 2 * out)
    close(module(x, Context(Layout.full(1, 3), True), module.init_state(1, 3)), module(x, Context(Layout.full(1, 3), True)))


def test_it_remembers_the_latent_and_the_rotary_key_alone():
    assert mla().init_state(3, 10).nbytes == 3 * 10 * (L + R) * 8


def test_unless_told_a_latent_is_a_quarter_of_the_model_and_the_rotary_part_half_a_head():
    module = LatentAttention(64, 4)
    assert (module.d_latent, module.d_rotary, module.rotary_width) == (16, 8, 8)
    assert LatentAttention(8, 4).d_rotary == 2


def test_dropout_acts_in_training_only():
    module, x = mla(dropout=0.5), torch.randn(1, 6, D, dtype=torch.float64)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="d_model 10 must be a multiple of n_heads 4"):
        LatentAttention(10, 4)
