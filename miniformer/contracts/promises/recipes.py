"""What recipes promise: optimizers that decay what their groups say, schedules that are functions of the step, both resumed."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from miniformer.contracts.kit.case import Case, require, seeded
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.interfaces import Norm
from miniformer.kernel.recipes import OptimizerRecipe, trainable

PEAK, NEAR = 0.25, 1e-6
"""The highest rate of a schedule that is checked, and how near it counts as reached."""


class _Scale(Norm):
    """A gain for each element, as norms have it."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class _Model(nn.Module):
    """A model with what recipes treat differently: a matrix with a bias, a norm, an embedding, a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.table, self.norm, self.out, self.frozen = nn.Embedding(6, 4), _Scale(4), nn.Linear(4, 3), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(self.frozen(self.table(ids))))
        return out


def _loss(model: nn.Module, step: int) -> Tensor:
    """The loss of a batch of step's own: a class for each of six tokens."""
    ids = torch.arange(6).roll(step)[:4]
    return nn.functional.cross_entropy(model(ids), ids % 3)


def _steps(model: nn.Module, optimizer: Optimizer, steps: Sequence[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        _loss(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _reread(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=False)
    return read


def _optimizer(case: Case, model: nn.Module, *, weight_decay: float, lr: float | None = None,
               options: Mapping[str, Any] | None = None) -> tuple[Optimizer, list[dict[str, Any]]]:
    """The optimizer of a model, and its groups as the recipe made them."""
    sizes = {"lr": case.choose("lr", [1e-2, 1e-3]) if lr is None else lr, "weight_decay": weight_decay}
    recipe: OptimizerRecipe = case.build_or_reject(sizes, case.options() if options is None else options)
    groups = recipe.groups(model)
    return recipe.build([dict(group) for group in groups]), groups


@contract("optimizer", examples=0.25)
def lowers_a_simple_loss(case: Case) -> None:
    """With the options that it has unless told otherwise, it lowers the loss of a small model.

    In training: the loss stays or grows, and the data are blamed.
    """
    model = _Model()
    optimizer, _ = _optimizer(case, model, weight_decay=0.0, options={})
    before = sum(float(_loss(model, step).detach()) for step in range(6))
    _steps(model, optimizer, range(60))
    after = sum(float(_loss(model, step).detach()) for step in range(6))
    require(after < before, f"in 60 steps the loss goes from {before:.4g} to {after:.4g}")


@contract("optimizer")
def decays_as_its_groups_say(case: Case) -> None:
    """Weight decay is on the groups that have it and on no other, none of which hold biases, norms or single numbers; every
    parameter that trains is in one group.

    In training: norms and biases are drawn to zero, or nothing decays and the setting is a lie.

    Seen: Fast-LLM#542, where the weights of norms were decayed again after they had been moved to another file.
    """
    model = _Model()
    decay = case.choose("weight_decay", [0.1, 0.0, 0.5])
    optimizer, groups = _optimizer(case, model, weight_decay=decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    require(sorted(grouped) == sorted(map(id, trainable(model))), "its groups do not hold every parameter that trains once")
    decayed = {id(p): group.get("weight_decay", decay) for group in groups for p in group["params"]}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        wanted = decayed.get(id(parameter), 0.0)
        require(parameter.ndim > 1 or not wanted, f"{name}, a vector, is in a group with weight decay {wanted}")
        if wanted:
            shrinks = bool((parameter.abs() < before[name].abs())[before[name] != 0].all())
            require(shrinks, f"{name} is in a group with weight decay {wanted}, and a step without gradient does not shrink it")
        else:
            require(torch.equal(parameter, before[name]), f"{name} has no weight decay, and a step without gradient moves it")


@contract("optimizer", examples=0.5)
def follows_the_rates_of_its_groups(case: Case) -> None:
    """How far it goes hangs on the learning rate that a schedule writes into its groups: at rate 0 nothing moves.

    In training: warm-up and decay are drawn in the log, and have no effect.
    """
    model = _Model()
    optimizer, _ = _optimizer(case, model, weight_decay=0.1)
    _steps(model, optimizer, range(2))
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    before = copy.deepcopy(model.state_dict())
    _steps(model, optimizer, range(2))
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    require(not moved, f"at learning rate 0 it moves {', '.join(moved)}")


@contract("optimizer", examples=0.5)
def goes_on_from_its_state(case: Case) -> None:
    """With its state saved, and loaded into a fresh one, it goes on to the same weights to the last bit.

    In training: each resumed run has a jump in its loss, and is not the run that was interrupted.

    Seen: pytorch-lightning#19764 and others, where a resumed run was not the uninterrupted one.
    """
    model = _Model()
    done = case.draw("steps before", st.integers(1, 5))
    optimizer, _ = _optimizer(case, model, weight_decay=0.1, options=(options := case.options()))
    _steps(model, optimizer, range(done))
    resumed = copy.deepcopy(model)
    again, _ = _optimizer(case, resumed, weight_decay=0.1, lr=case.story["lr"], options=options)
    again.load_state_dict(_reread(optimizer.state_dict()))
    for one, two in ((model, optimizer), (resumed, again)):
        _steps(one, two, range(done, done + 3))
    for (name, expected), found in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        require(torch.equal(found, expected), f"after three more steps {name} is not what it is without the pause")


class _Schedule:
    """A schedule with drawn options and length, on an optimizer of two groups whose peaks are 1 to 3."""

    def __init__(self, case: Case) -> None:
        self.total, self.warmup = case.draw("total_steps", st.integers(1, 60)), case.draw("warmup_steps", st.integers(0, 70))
        self.case, self.options = case, case.options()
        self.optimizer, self.scheduler = self.fresh()

    def fresh(self) -> tuple[Optimizer, Any]:
        """The optimizer and its schedule at the start."""
        peaks = [PEAK, PEAK * 3]
        optimizer = AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks], betas=(0.9, 0.95))
        recipe = self.case.build_or_reject({"total_steps": self.total, "warmup_steps": self.warmup}, self.options)
        return optimizer, recipe.build(optimizer)

    def rates(self, steps: int | None = None) -> list[tuple[float, float]]:
        """The rates of both groups at each of the next steps; the schedule is stepped after the last one too."""
        found = []
        for _ in range(self.total if steps is None else steps):
            found.append(tuple(float(group["lr"]) for group in self.optimizer.param_groups))
            self.optimizer.step()
            self.scheduler.step()
        return found  # type: ignore[return-value]


@contract("scheduler")
def stays_between_zero_and_the_peak(case: Case) -> None:
    """For a run of any length, of one step and without warm-up too, no rate is below 0 or above the peak, and not all are 0.

    In training: a rate above the one that was set makes the run diverge; one below 0 learns the opposite.
    """
    rates = [rate for rate, _ in _Schedule(case).rates()]
    for step, rate in enumerate(rates):
        require(math.isfinite(rate) and -1e-12 <= rate <= PEAK * (1 + NEAR),
                f"at step {step} the rate is {rate / PEAK:.4g} peaks")
    require(max(rates) > 0, "all rates are 0")


@contract("scheduler")
def warms_up_to_the_peak(case: Case) -> None:
    """Over `warmup_steps` the rate rises from below the peak, and reaches it.

    In training: the first steps, at full rate, throw the weights where the rest of the run does not find back from.
    """
    schedule = _Schedule(case)
    rates = [rate for rate, _ in schedule.rates()]
    rising = rates[:schedule.warmup]
    require(all(a <= b * (1 + NEAR) for a, b in pairwise(rising)), f"while it warms up the rate falls: {_in_peaks(rising)}")
    if schedule.warmup > 1:  # a warm-up of one step may end with it
        require(rates[0] < PEAK, "the first rate of a warm-up is the peak")
    if 0 < schedule.warmup < schedule.total:
        top = max(rates[:schedule.warmup + 1])
        require(top >= PEAK * (1 - NEAR), f"until it is warm the highest rate is {top / PEAK:.4g} peaks")


def _in_peaks(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate / PEAK:.3g}" for rate in rates[:8])


@contract("scheduler")
def hangs_on_the_step_alone(case: Case) -> None:
    """Resumed from its state at any step, it goes on as if nothing had been.

    In training: a run that was interrupted warms up again, or stays at the rate where it stood.

    Seen: lightly-train#301, where a resumed run started its schedule anew.
    """
    schedule = _Schedule(case)
    stop = case.draw("resumed at step", st.integers(0, schedule.total))
    schedule.rates(stop)
    states = _reread({"optimizer": schedule.optimizer.state_dict(), "scheduler": schedule.scheduler.state_dict()})
    expected = schedule.rates(schedule.total - stop)
    schedule.optimizer, schedule.scheduler = schedule.fresh()
    schedule.optimizer.load_state_dict(states["optimizer"])
    schedule.scheduler.load_state_dict(states["scheduler"])
    found = schedule.rates(schedule.total - stop)
    for step, (a, b) in enumerate(zip(found, expected, strict=True), start=stop):
        require(a == b, f"at step {step} the resumed rate is {a[0] / PEAK:.4g} peaks, and uninterrupted {b[0] / PEAK:.4g}")


@contract("scheduler", examples=0.5)
def scales_every_group_alike(case: Case) -> None:
    """Groups with other peaks keep the ratio of their rates, and nothing but the rates is changed.

    In training: a rate of its own for a group, or the momentum that was set, is lost at the first step.

    Seen: DeepSpeed#8495, a one-cycle schedule that set the second beta of every group.
    """
    schedule = _Schedule(case)
    before = [{name: group[name] for name in ("betas", "eps", "weight_decay")} for group in schedule.optimizer.param_groups]
    for step, (rate, larger) in enumerate(schedule.rates()):
        require(math.isclose(3 * rate, larger, rel_tol=NEAR, abs_tol=1e-12),
                f"at step {step} the rates are {rate:g} and {larger:g}, and their peaks are as 1 to 3")
        for group, was in zip(schedule.optimizer.param_groups, before, strict=True):
            changed = [name for name, value in was.items() if group[name] != value]
            require(not changed, f"it changes {', '.join(changed)} of the optimizer")
