"""Learning-rate schedules against their closed forms, one optimizer step at a time."""

import math

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.kernel import SpecError, build
from miniformer.kernel.recipes import SchedulerRecipe

PEAK = 0.2
RUNS = [(100, 10), (100, 0), (50, 50), (10, 30), (1, 0), (2, 1)]
runs = st.tuples(st.integers(1, 60), st.integers(0, 80))


def rates(spec, total, warmup, peaks=(PEAK,)):
    """The rate at each of `total` steps, as an optimizer uses it; one tuple for several groups."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in peaks]
    optimizer = torch.optim.SGD(groups)
    scheduler = build(SchedulerRecipe, spec, total, warmup).build(optimizer)
    found = []
    for _ in range(total):
        found.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()  # after the last step too, as a training loop does
    return found if len(peaks) > 1 else [rate for rate, in found]


def warm(step, warmup):
    """A linear rise that reaches 1 at step `warmup`, counted from 0."""
    return min(1.0, (step + 1) / (warmup + 1))


@pytest.mark.parametrize("spec", ["linear", "none"])
@pytest.mark.parametrize(("total", "warmup"), RUNS)
def test_the_rate_rises_linearly_and_stays(spec, total, warmup):
    assert rates(spec, total, warmup) == pytest.approx([PEAK * warm(s, warmup) for s in range(total)])


def test_without_warmup_the_rate_is_the_peak_from_the_first_step():
    assert rates("none", 5, 0) == [PEAK] * 5


def test_no_step_is_wasted_at_rate_zero():
    assert min(rates("linear", 20, 10)) > 0


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("total", "warmup"), RUNS)
def test_cosine_is_half_a_wave_down_to_its_floor(total, warmup, floor):
    def closed(step):
        done = 0 if step < warmup else (step - warmup) / (total - warmup)
        return PEAK * warm(step, warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    assert rates({"name": "cosine", "floor": floor}, total, warmup) == pytest.approx(list(map(closed, range(total))))


def test_cosine_ends_near_a_tenth_of_the_peak_unless_told():
    assert rates("cosine", 1000, 0)[-1] == pytest.approx(PEAK / 10, rel=1e-3)


def test_cosine_is_at_its_peak_when_warm_and_only_falls_then():
    found = rates("cosine", 50, 10)
    assert found[10] == max(found) == pytest.approx(PEAK)
    assert found[10:] == sorted(found[10:], reverse=True)


@pytest.mark.parametrize(("total", "warmup", "peak_at"), [(100, 10, 10), (100, 50, 50), (100, 0, 30), (40, 39, 39)])
def test_one_cycle_peaks_when_warm_or_at_thirty_percent(total, warmup, peak_at):
    found = rates("onecycle", total, warmup)
    assert found.index(max(found)) == peak_at
    assert max(found) == pytest.approx(PEAK)


def test_one_cycle_is_two_cosines():
    total, top = 60, 20
    found = rates("onecycle", total, top)
    low, end = PEAK / 25, PEAK / 25 / 1e4

    def between(a, b, part):
        return b + (a - b) * (1 + math.cos(math.pi * part)) / 2

    assert found[:top + 1] == pytest.approx([between(low, PEAK, s / top) for s in range(top + 1)])
    assert found[top:] == pytest.approx([between(PEAK, end, (s - top) / (total - top)) for s in range(top, total)])


def test_one_cycle_leaves_momentum_alone():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=PEAK, betas=(0.9, 0.95))
    scheduler = build(SchedulerRecipe, "onecycle", 10, 3).build(optimizer)
    for _ in range(10):
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
        optimizer.step()
        scheduler.step()


@settings(max_examples=depth.examples(40), deadline=None)
@given(runs, st.sampled_from(["none", "linear", "cosine", "onecycle"]))
def test_any_run_can_be_stepped_to_its_end(run, spec):
    assert all(0 < rate <= PEAK * (1 + 1e-9) for rate in rates(spec, *run))


@pytest.mark.parametrize("spec", ["none", "linear", "cosine", "onecycle"])
def test_groups_keep_the_ratio_of_their_rates(spec):
    assert all(b == pytest.approx(3 * a) for a, b in rates(spec, 20, 5, peaks=(PEAK, 3 * PEAK)))


def test_a_floor_above_the_peak_is_refused():
    with pytest.raises(SpecError, match="floor"):
        build(SchedulerRecipe, {"name": "cosine", "floor": 1.5}, 10, 1)
