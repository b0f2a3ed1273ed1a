import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.model.position import Learned, NoPosition, Rotary, Sinusoidal

D, H, T, E = 16, 2, 6, 8
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 7, 8, 1, 2]])


def rotate(encoding, x, positions, role="q"):
    return encoding.rotate(x, encoding.prepare(positions), role)


def test_rope_turns_pairs_like_complex_numbers():
    x = torch.randn(2, H, T, E, dtype=torch.float64)
    found = rotate(Rotary(D, H, 32), x, POSITIONS)
    for b in range(2):
        for t in range(T):
            for h in range(H):
                expected = oracles.rotary(x[b, h, t], int(POSITIONS[b, t]))
                torch.testing.assert_close(found[b, h, t], expected, rtol=0, atol=1e-5)  # angles are float32


@pytest.mark.parametrize("base", [100.0, 500_000.0])
def test_rope_has_the_base_it_was_given(base):
    x = torch.randn(1, H, 1, E, dtype=torch.float64)
    found = rotate(Rotary(D, H, 32, base=base), x, torch.tensor([[9]]))
    torch.testing.assert_close(found[0, 1, 0], oracles.rotary(x[0, 1, 0], 9, base), rtol=0, atol=1e-5)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_scores_under_rope_depend_on_the_distance_alone(i, j, shift):
    generator = torch.Generator().manual_seed(i)
    q, k = (torch.randn(1, 1, 1, E, generator=generator, dtype=torch.float64) for _ in range(2))
    encoding = Rotary(E, 1, 1024)

    def score(i, j):
        return float((rotate(encoding, q, torch.tensor([[i]])) * rotate(encoding, k, torch.tensor([[j]]), "k")).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=2e-3)


def test_rope_leaves_lengths_alone():
    x = torch.randn(2, H, T, E)
    torch.testing.assert_close(rotate(Rotary(D, H, 32), x, POSITIONS).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(("pct", "width"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.25, 2)])
def test_partial_rope_turns_the_first_part_of_each_head_and_leaves_the_rest(pct, width):
    x = torch.randn(1, H, T, E, dtype=torch.float64)
    found = rotate(Rotary(D, H, 32, pct=pct), x, POSITIONS[:1])
    assert torch.equal(found[..., width:], x[..., width:])
    torch.testing.assert_close(found[0, 0, 5, :width], oracles.rotary(x[0, 0, 5, :width], 5), rtol=0, atol=1e-5)


def test_rope_refuses_a_part_without_a_pair():
    with pytest.raises(ValueError, match=r"pct 0.1 of a head of 8 elements .* leaves no pair to rotate"):
        Rotary(D, H, 32, pct=0.1)


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


@pytest.mark.parametrize(("cls", "hooks", "extrapolates"), [
    (NoPosition, set(), True), (Sinusoidal, {"embed"}, True), (Learned, {"embed"}, False), (Rotary, {"rotate"}, True)])
def test_an_encoding_says_what_it_does_and_how_far_it_goes(cls, hooks, extrapolates):
    assert cls.hooks() == hooks
    assert cls.extrapolates == extrapolates


@pytest.mark.parametrize("cls", [NoPosition, Sinusoidal, Learned, Rotary])
def test_an_encoding_keeps_the_dtype(cls):
    encoding = cls(D, H, 32).to(torch.bfloat16)
    x = torch.randn(2, T, D, dtype=torch.bfloat16)
    assert encoding.embed(x, POSITIONS).dtype == torch.bfloat16
    q = torch.randn(2, H, T, E, dtype=torch.bfloat16)
    assert rotate(encoding, q, POSITIONS).dtype == torch.bfloat16
