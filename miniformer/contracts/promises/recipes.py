"""Promises of optimizers: they decay what their groups say, follow their rates, and go on after a resume."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from miniformer.contracts.kit.case import Case, require, seeded, undisturbed
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.interfaces import Norm
from miniformer.kernel.recipes import OptimizerRecipe, trainable

NEAR = 1e-6
"""The relative error within which a learning rate counts as equal to another."""


class _Scale(Norm):
    """A norm with one gain for each element, and nothing else."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class _Model(nn.Module):
    """A model with parameters that recipes treat differently.

    They are a matrix and its bias, a norm, an embedding that a layer shares, a frozen matrix, and a vector and a single number
    whose names say nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.table, self.norm, self.out, self.frozen = nn.Embedding(6, 4), _Scale(4), nn.Linear(4, 3), nn.Linear(4, 4)
            self.shared = nn.Linear(4, 6, bias=False)
            self.start, self.factor = nn.Parameter(0.1 * torch.randn(4)), nn.Parameter(torch.tensor(1.5))
        self.shared.weight = self.table.weight
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        read = self.shared(self.table(ids)) @ self.table.weight
        out: Tensor = self.factor * self.out(self.norm(self.frozen(self.table(ids) + 0.1 * read + self.start)))
        return out


def _loss(model: nn.Module, step: int) -> Tensor:
    """The loss of a batch that depends on the step: four tokens, each with a class."""
    ids = torch.arange(6).roll(step)[:4]
    return nn.functional.cross_entropy(model(ids), ids % 3)


def _steps(model: nn.Module, optimizer: Optimizer, steps: Sequence[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        _loss(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def reread(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state after it was saved to a checkpoint and loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded


def _optimizer(case: Case, model: nn.Module, *, weight_decay: float, lr: float | None = None, own_rate: float | None = None,
               options: Mapping[str, Any] | None = None) -> tuple[Optimizer, list[dict[str, Any]]]:
    """The optimizer of a model, and the groups that the recipe made for it; with `own_rate`, the last of them has this rate."""
    sizes = {"lr": case.choose("lr", [1e-2, 1e-3]) if lr is None else lr, "weight_decay": weight_decay}
    recipe: OptimizerRecipe = case.build_or_reject(sizes, case.options() if options is None else options)
    groups = recipe.groups(model)
    if own_rate is not None:
        groups[-1]["lr"] = own_rate
    return recipe.build([dict(group) for group in groups]), groups


@contract("optimizer", examples=0.25)
def lowers_a_simple_loss(case: Case) -> None:
    """With its default options, it lowers the loss of a small model. Every trainable parameter takes part, no other is changed,
    and the process is left as it was.

    In training: the loss stays the same or grows, and one looks for the fault in the data.
    """
    model = _Model()
    optimizer, _ = _optimizer(case, model, weight_decay=0.0, options={})
    before = sum(float(_loss(model, step).detach()) for step in range(6))
    weights = copy.deepcopy(dict(model.named_parameters()))
    with undisturbed("training with it"):
        _steps(model, optimizer, range(60))
    for name, parameter in model.named_parameters():
        moves = not torch.equal(parameter, weights[name])
        require(moves or not parameter.requires_grad, f"in 60 steps it does not change {name}")
        require(not moves or parameter.requires_grad, f"it changes {name}, which is frozen")
    after = sum(float(_loss(model, step).detach()) for step in range(6))
    require(after < before, f"in 60 steps the loss goes from {before:.4g} to {after:.4g}")


@contract("optimizer")
def decays_as_its_groups_say(case: Case) -> None:
    """Every trainable parameter is in exactly one group. Weight decay acts on the groups that set it and on no other, and these
    groups hold no biases, norms or single numbers.

    In training: norms and biases are pulled towards zero, or nothing decays although the setting says so.

    Seen: Fast-LLM#542, where the weights of norms were decayed again after their code had been moved to another file.
    """
    model = _Model()
    decay = case.choose("weight_decay", [0.1, 0.0, 0.5])
    optimizer, groups = _optimizer(case, model, weight_decay=decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    require(sorted(grouped) == sorted(map(id, trainable(model))), "its groups do not hold every trainable parameter once")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    require(sorted(held) == sorted(grouped), "the optimizer does not hold every parameter of its groups once")
    decays = {id(p): group.get("weight_decay", decay) for group in groups for p in group["params"]}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decay = decays.get(id(parameter), 0.0)
        require(parameter.ndim > 1 or not decay, f"{name}, a vector, is in a group with weight decay {decay}")
        if decay:
            shrinks = bool((parameter.abs() < before[name].abs())[before[name] != 0].all())
            require(shrinks, f"{name} is in a group with weight decay {decay}, and a step without gradient does not shrink it")
        else:
            require(torch.equal(parameter, before[name]), f"{name} has no weight decay, and a step without gradient moves it")


@contract("optimizer", examples=0.5)
def follows_the_rates_of_its_groups(case: Case) -> None:
    """It uses the learning rate that a schedule writes into each of its groups: at rate 0 no weight of a group changes, and
    those of other groups do. A group that comes with a rate of its own keeps it.

    In training: warm-up and decay are shown in the log, and have no effect; or all layers get the rate of the first.
    """
    model = _Model()
    optimizer, groups = _optimizer(case, model, weight_decay=0.1, own_rate=0.003)
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    kept = {rates.get(id(p)) for p in groups[-1]["params"]}
    require(len(kept) == 1 and math.isclose(kept.pop() or 0.0, 0.003, rel_tol=NEAR),
            "a group that comes with learning rate 0.003 has another one in the optimizer")
    _steps(model, optimizer, range(2))
    still = case.choose("groups at rate 0", ["all", *range(len(optimizer.param_groups))])
    stopped = set[int]()
    for place, group in enumerate(optimizer.param_groups):
        if still in ("all", place):
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
            stopped |= set(map(id, group["params"]))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _steps(model, optimizer, range(2, 6))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            changed, stops = not torch.equal(parameter, before[name]), id(parameter) in stopped
            require(not (changed and stops), f"at learning rate 0 it changes {name}")
            require(changed or stops, f"it does not change {name}, whose rate is above 0, while another group's is 0")


@contract("optimizer", examples=0.2)
def runs_its_closure(case: Case) -> None:
    """`step(closure)` calls the closure, with gradients switched on, and steps as it does without one.

    In training: Lightning computes the loss in the closure, so nothing is learnt, or the run ends at its first step.
    """
    model, options = _Model(), case.options()
    optimizer, _ = _optimizer(case, model, weight_decay=0.1, options=options)
    other = copy.deepcopy(model)
    usual, _ = _optimizer(case, other, weight_decay=0.1, lr=case.story["lr"], options=options)
    calls = []
    for step in range(3):
        def closure(step: int = step) -> Tensor:
            calls.append(step)
            optimizer.zero_grad()
            loss = _loss(model, step)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        require(step in calls, "step(closure) does not call the closure")
    if len(calls) == 3:  # one that looks at several losses in a step has no other way to step
        _steps(other, usual, range(3))
        for name, expected in other.state_dict().items():
            require(torch.equal(model.state_dict()[name], expected), f"with a closure, {name} is another after three steps")


@contract("optimizer", examples=0.5)
def goes_on_from_its_state(case: Case) -> None:
    """A new optimizer that loads its saved state continues to the same weights, to the last bit.

    In training: the loss of each resumed run jumps, and the run is not the one that was interrupted.

    Seen: pytorch-lightning#19764 and others, where a resumed run differed from the uninterrupted one.
    """
    model, options = _Model(), case.options()
    done = case.draw("steps before", st.integers(1, 5))
    optimizer, _ = _optimizer(case, model, weight_decay=0.1, options=options)
    _steps(model, optimizer, range(done))
    resumed_model = copy.deepcopy(model)
    resumed, _ = _optimizer(case, resumed_model, weight_decay=0.1, lr=case.story["lr"], options=options)
    resumed.load_state_dict(reread(optimizer.state_dict()))
    _steps(model, optimizer, range(done, done + 3))
    _steps(resumed_model, resumed, range(done, done + 3))
    for name, expected in model.state_dict().items():
        require(torch.equal(resumed_model.state_dict()[name], expected),
                f"after three more steps {name} is not the same as without the interruption")
