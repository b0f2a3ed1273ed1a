"""Metrics that follow from a summed loss."""

import math

import pytest
import torch

from miniformer.tasks.metrics import R2, BitsPerByte, LossRatio, Perplexity

BATCHES = [(3.0, 2), (10.0, 7), (0.5, 1)]


def after(metric, batches=BATCHES):
    for nats, count in batches:
        metric.update(torch.tensor(nats), torch.tensor(count))
    return float(metric.compute())


def test_a_ratio_weighs_batches_by_their_count():
    assert after(LossRatio()) == pytest.approx(13.5 / 10)


def test_perplexity_is_exp_of_the_mean_loss():
    assert after(Perplexity()) == pytest.approx(math.exp(1.35))


def test_bits_per_byte_are_nats_in_bits():
    assert after(BitsPerByte()) == pytest.approx(1.35 / math.log(2))


def test_small_batches_are_not_lost_in_a_long_pass():
    """In single precision 2^24 + 1 is 2^24."""
    assert after(LossRatio(), [(2.0**24, 1)] + [(1.0, 0)] * 100) == 2**24 + 100


def test_a_metric_holds_no_graph():
    metric, loss = Perplexity(), torch.ones((), requires_grad=True)
    metric.update(loss * 2, torch.tensor(1))
    assert not metric.compute().requires_grad


def test_a_metric_starts_anew_after_reset():
    metric = Perplexity()
    after(metric)
    metric.reset()
    assert after(metric, [(2.0, 1)]) == pytest.approx(math.exp(2))


def test_bits_per_byte_of_empty_texts_are_finite():
    assert after(BitsPerByte(), [(3.0, 0)]) == pytest.approx(3 / math.log(2))


def r2(right, predicted):
    metric, half = R2(), len(right) // 2
    for part in (slice(0, half), slice(half, None)):
        metric.update(torch.tensor(predicted[part], dtype=torch.float64), torch.tensor(right[part], dtype=torch.float64))
    return float(metric.compute())


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_explained_variance_has_no_unit(unit):
    """However small the numbers, their variance is no zero."""
    right, predicted = [1.0, 2.0, 4.0, 5.0], [1.0, 2.5, 3.0, 6.0]
    assert r2([unit * x for x in right], [unit * x for x in predicted]) == pytest.approx(1 - 2.25 / 10)


@pytest.mark.parametrize("right", [[3.0], [0.1] * 7, [1 / 3] * 1000, [0.0, 0.0], [1e9, 1e9, 1e9]])
def test_of_equal_numbers_no_variance_is_explained(right):
    assert r2(right, [x + 1 for x in right]) == r2(right, right) == 0
