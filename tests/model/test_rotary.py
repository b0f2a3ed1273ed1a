import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.model.rotary import Rotary

D, H, T, E = 16, 2, 6, 8
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 7, 8, 1, 2]])


def rotate(encoding, x, positions, role="q"):
    return encoding.rotate(x, encoding.precompute(positions), role)


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



# --- scaling: wavelength of pair i, in positions, is 2 pi base^(i / pairs)

PAIRS = 32


def scaled(scaling, factor=4.0, original=2048, base=10_000.0):
    encoding = Rotary(2 * PAIRS, 1, 8192, scaling=scaling, factor=factor, original_length=original, base=base)
    return encoding.frequencies().double()


def plain(base=10_000.0):
    return torch.tensor([base ** (-i / PAIRS) for i in range(PAIRS)], dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_without_scaling_frequencies_fall_geometrically():
    close(scaled("none", factor=1.0), plain())


def test_linear_scaling_is_dividing_positions():
    close(scaled("linear"), plain() / 4)
    x, long = torch.randn(1, 1, 3, 8), Rotary(8, 1, 64, scaling="linear", factor=2.0)
    expected = rotate(Rotary(8, 1, 64), x, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(rotate(long, x, torch.tensor([[0, 2, 4]])), expected)


def test_ntk_scaling_stretches_the_longest_wavelength_alone():
    close(scaled("ntk"), plain(10_000.0 * 4 ** (2 * PAIRS / (2 * PAIRS - 2))))
    assert float(scaled("ntk")[0]) == 1
    close(scaled("ntk")[-1:], plain()[-1:] / 4)


def test_ntk_scaling_of_a_single_pair_changes_nothing():
    assert Rotary(2, 1, 64, scaling="ntk", factor=4.0).frequencies().tolist() == [1.0]


@pytest.mark.parametrize("original", [256, 2048])
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_yarn_blends_by_how_often_a_pair_turns_in_the_original_length(factor, original):
    def pair(turns):
        return 2 * PAIRS * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = max(0, math.floor(pair(32))), min(2 * PAIRS - 1, math.ceil(pair(1)))
    expected = [(keep := 1 - min(1, max(0, (i - low) / (high - low)))) * w + (1 - keep) * w / factor
                for i, w in enumerate(plain().tolist())]
    close(scaled("yarn", factor, original), torch.tensor(expected, dtype=torch.float64))


def test_yarn_keeps_short_wavelengths_and_stretches_those_beyond_the_original_length():
    found, turns = scaled("yarn"), 2048 * plain() / (2 * math.pi)
    close(found[turns > 40], plain()[turns > 40])
    close(found[turns < 0.7], plain()[turns < 0.7] / 4)


def test_yarn_makes_scores_larger():
    x = torch.randn(1, 1, 1, 8)
    found = rotate(Rotary(8, 1, 64, scaling="yarn", factor=4.0), x, torch.tensor([[3]]))
    torch.testing.assert_close(found.norm(), x.norm() * (0.1 * math.log(4) + 1))


def test_yarn_takes_the_original_length_from_the_models_unless_told():
    one, other = (Rotary(16, 1, 64, scaling="yarn", factor=4.0, original_length=n) for n in (None, 16))
    assert torch.equal(one.frequencies(), other.frequencies())


@pytest.mark.parametrize("original", [256, 2048])
def test_llama3_stretches_pairs_that_turn_once_and_keeps_those_that_turn_four_times(original):
    def stretched(w):
        turns = original * w / (2 * math.pi)
        keep = min(1, max(0, (turns - 1) / (4 - 1)))
        return keep * w + (1 - keep) * w / 8

    close(scaled("llama3", 8.0, original), torch.tensor([stretched(w) for w in plain().tolist()], dtype=torch.float64))


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn", "llama3"])
def test_a_factor_of_one_changes_nothing(scaling):
    close(scaled(scaling, factor=1.0), plain())


def test_a_factor_without_a_scaling_is_refused():
    with pytest.raises(ValueError, match=r"factor 2\.0 needs a scaling: linear, ntk, yarn or llama3"):
        Rotary(8, 1, 64, factor=2.0)
