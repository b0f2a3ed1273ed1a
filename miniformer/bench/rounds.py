"""Rounds: contestants are measured in short turns, so that other work on the machine slows all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One measurement: units (tokens, operations) per second, and the peak memory of the process in bytes."""

    rate: float
    peak_bytes: int


def play(contestants: Sequence[Callable[[], Sample]], rounds: int) -> list[list[Sample]]:
    """The samples of each contestant, one for each round.

    Every second round goes backwards, so that a machine that gets slower favours nobody.
    """
    samples: list[list[Sample]] = [[] for _ in contestants]
    for number in range(rounds):
        order = range(len(contestants))
        for i in order if number % 2 == 0 else reversed(order):
            samples[i].append(contestants[i]())
    return samples


def figures(samples: Sequence[Sample], first: Sequence[Sample]) -> dict[str, Any]:
    """The figures of a contestant, with its ratio to the first contestant in the same rounds.

    They are medians over the rounds; `lowest` and `highest` show how far a median can be trusted.
    """
    rates = [sample.rate for sample in samples]
    ratios = [sample.rate / reference.rate for sample, reference in zip(samples, first, strict=True)]
    return {"tokens_per_second": median(rates), "lowest": min(rates), "highest": max(rates), "ratio": median(ratios),
            "ratio_lowest": min(ratios), "ratio_highest": max(ratios), "peak_bytes": max(s.peak_bytes for s in samples)}


def utilisation(tokens_per_second: float, flops_per_token: int | None, peak: Sequence[Sample]) -> float | None:
    """Model FLOPs utilisation of training (Chowdhery 2022, arXiv:2204.02311), relative to the best rate in `peak`.

    A training step counts as three forward passes, since a backward pass takes two matrix products for each of the forward's.
    """
    if flops_per_token is None:
        return None
    return 3 * flops_per_token * tokens_per_second / max(sample.rate for sample in peak)

