"""Promises of schedules: rates between zero and the peak, a warm-up, an end, and the same rates after a resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW, Optimizer

from miniformer.contracts.kit.case import Case, require, undisturbed
from miniformer.contracts.kit.properties import contract

from .recipes import NEAR, reread

PEAK = 0.25
"""The peak learning rate of a checked schedule."""


class _Schedule:
    """A schedule with drawn options and a drawn length, for an optimizer of two groups; the second has three times the peak."""

    def __init__(self, case: Case, at_least: int = 1) -> None:
        self.total = case.draw("total_steps", st.integers(at_least, 60))
        self.warmup = case.draw("warmup_steps", st.integers(0, 70 if at_least == 1 else self.total // 2))
        self.case, self.options = case, case.options()
        self.optimizer, self.scheduler = self.fresh()

    def fresh(self) -> tuple[Optimizer, Any]:
        """A new optimizer and its schedule, before the first step."""
        peaks = [PEAK, PEAK * 3]
        optimizer = AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks], betas=(0.9, 0.95))
        recipe = self.case.build_or_reject({"total_steps": self.total, "warmup_steps": self.warmup}, self.options)
        return optimizer, recipe.build(optimizer)

    def rates(self, steps: int | None = None) -> list[tuple[float, float]]:
        """Take steps, or all of the run, and return the rates of both groups in each of them."""
        rates = []
        for _ in range(self.total if steps is None else steps):
            first, second = (float(group["lr"]) for group in self.optimizer.param_groups)
            rates.append((first, second))
            self.optimizer.step()
            self.scheduler.step()
        return rates


    def rates_beyond(self, steps: int) -> list[float]:
        """The rates of the first group in so many steps, or in those up to which the schedule can be stepped."""
        rates = []
        for _ in range(steps):
            try:
                rates += [rate for rate, _ in self.rates(1)]
            except ValueError:
                rates.append(float(self.optimizer.param_groups[0]["lr"]))
                break
        return rates


@contract("scheduler")
def stays_between_zero_and_the_peak(case: Case) -> None:
    """In a run of any length, no rate is below 0 or above the peak, and not all rates are 0. This holds for a run of one step
    and for a run without warm-up too.

    In training: a rate above the configured one makes the run diverge; with a rate below 0, the loss is driven up.
    """
    rates = [rate for rate, _ in _Schedule(case).rates()]
    for step, rate in enumerate(rates):
        require(math.isfinite(rate) and -1e-12 <= rate <= PEAK * (1 + NEAR),
                f"at step {step} the rate is {rate / PEAK:.4g} peaks")
    require(max(rates) > 0, "all rates are 0")


@contract("scheduler")
def warms_up_to_the_peak(case: Case) -> None:
    """In the first `warmup_steps` steps, the rate rises from below the peak up to the peak.

    In training: the first steps, at the full rate, do damage to the weights that the rest of the run does not repair.
    """
    schedule = _Schedule(case)
    rates = [rate for rate, _ in schedule.rates()]
    rising = rates[:schedule.warmup]
    rises = all(rate <= next_rate * (1 + NEAR) for rate, next_rate in pairwise(rising))
    require(rises, f"the rate falls during warm-up; in peaks: {_in_peaks(rising)}")
    if schedule.warmup > 1:  # a warm-up of one step may start at the peak
        require(rates[0] < PEAK, "the first rate of a warm-up is the peak")
    if 0 < schedule.warmup < schedule.total:
        top = max(rates[:schedule.warmup + 1])
        require(top >= PEAK * (1 - NEAR), f"until the end of warm-up the highest rate is {top / PEAK:.4g} peaks")


@contract("scheduler", examples=0.5)
def comes_to_its_end(case: Case) -> None:
    """A schedule that depends on the length of the run and has a lowest rate reaches it by the end of the run, not long after.

    In training: the run ends in the middle of the decay, at a high rate, as if it had been interrupted.
    """
    schedule = _Schedule(case, at_least=8)
    total, first = schedule.total, min(schedule.warmup, schedule.total)
    rates = schedule.rates_beyond(4 * total)
    schedule.total = 3 * total
    schedule.optimizer, schedule.scheduler = schedule.fresh()
    longer = schedule.rates_beyond(4 * total)
    in_both = min(len(rates), len(longer))
    if first >= total - 2 or rates[first:in_both] == longer[first:in_both]:
        return  # all warm-up, or it knows no end
    lowest = min(rates[first:])
    end = next(step for step, rate in enumerate(rates) if step >= first and rate <= lowest * (1 + NEAR) + 1e-12)
    if end < len(rates) - 1:  # otherwise it goes on falling as far as one can look, and has no lowest rate
        require(end <= total + 1, f"in a run of {total} steps its lowest rate, {lowest / PEAK:.3g} peaks, comes at step {end}; "
                                  f"at the end of the run it is {rates[total - 1] / PEAK:.3g} peaks")


def _in_peaks(rates: Sequence[float]) -> str:
    """The first rates, in units of the peak."""
    return ", ".join(f"{rate / PEAK:.3g}" for rate in rates[:8])


@contract("scheduler")
def hangs_on_the_step_alone(case: Case) -> None:
    """After a resume from its state, at any step, its rates are those of an uninterrupted run.

    In training: an interrupted run warms up again, or keeps the rate that it had when it was interrupted.

    Seen: lightly-train#301, where a resumed run started its schedule anew.
    """
    schedule = _Schedule(case)
    stop = case.draw("resumed at step", st.integers(0, schedule.total))
    schedule.rates(stop)
    states = reread({"optimizer": schedule.optimizer.state_dict(), "scheduler": schedule.scheduler.state_dict()})
    expected = schedule.rates(schedule.total - stop)
    schedule.optimizer, schedule.scheduler = schedule.fresh()
    schedule.optimizer.load_state_dict(states["optimizer"])
    schedule.scheduler.load_state_dict(states["scheduler"])
    resumed = schedule.rates(schedule.total - stop)
    for step, (rates, uninterrupted) in enumerate(zip(resumed, expected, strict=True), start=stop):
        require(rates == uninterrupted, f"at step {step} the resumed rate is {rates[0] / PEAK:.4g} peaks, and without the "
                                        f"interruption {uninterrupted[0] / PEAK:.4g}")


@contract("scheduler", examples=0.5)
def scales_every_group_alike(case: Case) -> None:
    """Groups with different peaks keep the ratio of their rates. It changes nothing in the optimizer but the rates, and nothing
    in the process.

    In training: the rate of a group, or the momentum that was set, is lost at the first step.

    Seen: DeepSpeed#8495, a one-cycle schedule that set the second beta of every group.
    """
    schedule = _Schedule(case)
    before = [{name: group[name] for name in ("betas", "eps", "weight_decay")} for group in schedule.optimizer.param_groups]
    with undisturbed("stepping it"):
        rates = schedule.rates()
    for step, (rate, larger) in enumerate(rates):
        require(math.isclose(3 * rate, larger, rel_tol=NEAR, abs_tol=1e-12),
                f"at step {step} the rates are {rate:g} and {larger:g}; expected a ratio of 1 to 3, as their peaks have")
        for group, settings in zip(schedule.optimizer.param_groups, before, strict=True):
            changed = [name for name, value in settings.items() if group[name] != value]
            require(not changed, f"it changes {', '.join(changed)} of the optimizer")
