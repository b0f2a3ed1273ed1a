"""Turns are taken in an order that is fair, and figures are those of the samples."""

import pytest

from miniformer.bench.rounds import Sample, figures, play, utilisation


def of(*rates):
    return [Sample(rate, 1000 + i) for i, rate in enumerate(rates)]


def test_everyone_has_a_turn_in_each_round_and_every_other_round_goes_backwards():
    turns = []

    def contestant(name):
        def measure():
            turns.append(name)
            return Sample(len(turns), 0)
        return measure

    samples = play([contestant(name) for name in "abc"], 3)
    assert "".join(turns) == "abc" "cba" "abc"
    assert [[sample.rate for sample in own] for own in samples] == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]


def test_a_steady_drift_cancels():
    """With a machine that loses as much speed each turn, equals over two rounds have equal means."""
    speed = iter(range(100, 0, -1))
    samples = play([lambda: Sample(next(speed), 0)] * 3, 2)
    assert len({sum(sample.rate for sample in own) for own in samples}) == 1


def test_ratios_are_those_of_the_same_round():
    """The machine halves its speed in the second round: rates say nothing then, and ratios what they said before."""
    found = figures(of(200, 100, 220), of(100, 50, 100))
    assert (found["tokens_per_second"], found["lowest"], found["highest"]) == (200, 100, 220)
    assert (found["ratio"], found["ratio_lowest"], found["ratio_highest"]) == (2.0, 2.0, 2.2)
    assert found["peak_bytes"] == 1002


def test_the_first_has_ratio_one():
    found = figures(of(3, 5), of(3, 5))
    assert found["ratio"] == found["ratio_lowest"] == found["ratio_highest"] == 1


def test_utilisation_is_three_passes_over_the_best_product():
    assert utilisation(1000, 2_000_000, of(6e9, 12e9, 8e9)) == pytest.approx(0.5)
    assert utilisation(1000, None, of(6e9)) is None
