import math
from dataclasses import replace

import pytest
import torch

from miniformer.kernel import Context, Layout
from miniformer.model.position import ALiBi, Learned, NoPosition, Sinusoidal, T5Bias
from miniformer.model.rotary import Rotary

D, H, T, E = 16, 2, 6, 8
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 7, 8, 1, 2]])


@pytest.mark.parametrize("d_model", [6, 7])
def test_sinusoidal_adds_the_published_waves_at_the_scale_of_an_embedding(d_model):
    found = Sinusoidal(d_model, 1, 32).embed(torch.ones(2, T, d_model, dtype=torch.float64), POSITIONS)
    pairs = (d_model + 1) // 2
    for b in range(2):
        for t in range(T):
            for i in range(d_model):
                angle = int(POSITIONS[b, t]) / 10_000 ** (i // 2 / pairs)
                wave = math.cos(angle) if i % 2 else math.sin(angle)
                assert float(found[b, t, i]) == pytest.approx(1 + wave * d_model ** -0.5, abs=1e-6)


def test_learned_adds_the_row_of_each_position():
    encoding = Learned(4, 1, 10)
    x = torch.randn(2, T, 4)
    found = encoding.embed(x, POSITIONS)
    assert torch.equal(found[1, 2], x[1, 2] + encoding.table.weight[7])
    assert torch.equal(found[1, 0], x[1, 0] + encoding.table.weight[0])


@pytest.mark.parametrize(("n_heads", "expected"), [
    (8, [2 ** -i for i in range(1, 9)]), (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]), (1, [1 / 256]),
    (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]), (3, [1 / 16, 1 / 256, 1 / 4])])
def test_the_slopes_of_alibi_are_the_papers(n_heads, expected):
    bias = ALiBi(D, n_heads, 32).bias(torch.tensor([[1]]), torch.tensor([[0]]))
    assert (-bias[0, :, 0, 0]).tolist() == pytest.approx(expected)


def test_alibi_falls_with_the_distance_of_each_pair_in_both_directions():
    q, k = torch.tensor([[5], [2]]), torch.tensor([[3, 4, 5, 9], [0, 1, 2, 4]])
    bias = ALiBi(D, 2, 32).bias(q, k)
    assert bias.shape == (2, 2, 1, 4)
    assert (bias[:, 0, 0] * 16).tolist() == [[-2, -1, 0, -4], [-2, -1, 0, -2]]


def bucket(back, n_buckets, max_distance, causal):
    """Raffel 2020's `_relative_position_bucket`, for one pair."""
    n = n_buckets if causal else n_buckets // 2
    first = 0 if causal or back >= 0 else n
    distance = max(back, 0) if causal else abs(back)
    exact = n // 2
    if distance < exact:
        return first + distance
    return first + min(n - 1, exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (n - exact)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (4, 3)])
def test_t5_looks_up_the_published_bucket_of_each_distance(n_buckets, max_distance, causal):
    encoding = T5Bias(D, H, 512, n_buckets=n_buckets, max_distance=max_distance)
    q, k = torch.tensor([[150, 0]]), torch.arange(300)[None]
    bias = (encoding.causal_bias if causal else encoding.bias)(q, k)
    for t, s in [(t, s) for t in range(2) for s in range(300)]:
        row = bucket(int(q[0, t] - k[0, s]), n_buckets, max_distance, causal)
        assert torch.equal(bias[0, :, t, s], encoding.table.weight[row])


def test_t5_uses_all_its_buckets_for_the_past_in_a_causal_model_alone():
    encoding, layout = T5Bias(D, H, 256), Layout.full(1, 200)
    for causal, rows in ((True, 32), (False, 31)):  # no key is later by 0
        (signal,) = Context(layout, causal).signals([encoding])
        assert len(torch.unique(signal.bias[0, 0])) == rows


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("cls", [ALiBi, T5Bias])
def test_a_step_of_decoding_has_the_last_row_of_the_bias(cls, causal):
    encoding = cls(D, H, 32)
    keys, step = Layout.full(2, 6), Layout.full(2, 1, start=5)
    (whole,), (last,) = Context(keys, causal).signals([encoding]), Context(step, causal, keys).signals([encoding])
    torch.testing.assert_close(last.bias, whole.bias[:, :, 5:].expand(2, -1, -1, -1))


@pytest.mark.parametrize("cls", [ALiBi, T5Bias])
def test_rows_that_are_alike_share_one_bias(cls):
    (alike,) = Context(Layout.full(3, 4)).signals([cls(D, H, 32)])
    assert len(alike.bias) == 1
    packed = replace(Layout.from_documents(torch.tensor([[1, 1, 2], [1, 2, 2]])), padded=False)
    for layout in (Layout.from_lengths([2, 3, 4], side="left"), Layout.from_lengths([2, 3, 4]), packed):
        (unlike,) = Context(layout).signals([cls(D, H, 32)])
        assert len(unlike.bias) == layout.shape[0]


@pytest.mark.parametrize(("options", "text"), [
    ({"n_buckets": 5}, "n_buckets 5 must be even"),
    ({"n_buckets": 32, "max_distance": 16}, "max_distance 16 must be more than the 16 distances"),
])
def test_buckets_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        T5Bias(D, H, 32, **options)


@pytest.mark.parametrize(("cls", "hooks", "extrapolates"), [
    (NoPosition, set(), True), (Sinusoidal, {"embed"}, True), (Learned, {"embed"}, False), (Rotary, {"rotate"}, True),
    (ALiBi, {"bias"}, True), (T5Bias, {"bias"}, True)])
def test_an_encoding_says_what_it_does_and_how_far_it_goes(cls, hooks, extrapolates):
    assert cls.hooks() == hooks
    assert cls.extrapolates == extrapolates
    assert cls.learns_bias == ("bias" in hooks and len(list(cls(D, H, 32).parameters())) > 0)


@pytest.mark.parametrize("cls", [NoPosition, Sinusoidal, Learned, Rotary, ALiBi, T5Bias])
def test_an_encoding_keeps_the_dtype(cls):
    encoding = cls(D, H, 32).to(torch.bfloat16)
    x = torch.randn(2, T, D, dtype=torch.bfloat16)
    assert encoding.embed(x, POSITIONS).dtype == torch.bfloat16
    q = torch.randn(2, H, T, E, dtype=torch.bfloat16)
    assert encoding.rotate(q, encoding.precompute(POSITIONS), "q").dtype == torch.bfloat16
