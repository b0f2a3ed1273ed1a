"""Rounds: contestants are measured briefly in turns, so that other work on the machine slows all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One measurement: units per second, and the most memory that the process has had, in bytes."""

    rate: float
    peak_bytes: int


def play(contestants: Sequence[Callable[[], Sample]], rounds: int) -> list[list[Sample]]:
    """The samples of each contestant, one of each round. Every other round goes backwards, so that drift cancels."""
    samples: list[list[Sample]] = [[] for _ in contestants]
    for number in range(rounds):
        order = range(len(contestants))
        for i in order if number % 2 == 0 else reversed(order):
            samples[i].append(contestants[i]())
    return samples


def figures(samples: Sequence[Sample], first: Sequence[Sample]) -> dict[str, Any]:
    """What the samples of a contestant say, and its ratio to the first one's of the same rounds.

    Medians; `lowest` and `highest` are of all rounds, and show how far a median can be trusted.
    """
    rates = [sample.rate for sample in samples]
    ratios = [sample.rate / other.rate for sample, other in zip(samples, first, strict=True)]
    return {"tokens_per_second": median(rates), "lowest": min(rates), "highest": max(rates), "ratio": median(ratios),
            "ratio_lowest": min(ratios), "ratio_highest": max(ratios), "peak_bytes": max(s.peak_bytes for s in samples)}


def utilisation(tokens_per_second: float, flops_per_token: int | None, peak: Sequence[Sample]) -> float | None:
    """Model FLOPs utilisation of training (Chowdhery 2022, arXiv:2204.02311): three forward passes, over the best product."""
    if flops_per_token is None:
        return None
    return 3 * flops_per_token * tokens_per_second / max(sample.rate for sample in peak)

