"""Metrics that follow from a summed loss."""

import math

import pytest
import torch

from miniformer.tasks.metrics import BitsPerByte, LossRatio, Perplexity

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
