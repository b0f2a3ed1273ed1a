"""Promises of every module about its gradients: they reach every parameter and every token, and they are right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer.contracts.kit.case import Case, require, require_equal, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS, ModuleRunner
from miniformer.contracts.kit.properties import Broken, contract

STEPS = (1e-4, 2.5e-5)
"""How far a parameter is moved to see whether the loss changes with it."""
LEAST_SLOPE = 0.02
"""A change of the loss per step that no rounding of float32 explains: where the loss is near 1, that is 0.005 at most."""

WAYS = ((1e-7, 1e-4, 1e-6), (1e-9, 1e-3, 1e-4), (1e-3, 1e-2, 1e-3))
"""Steps with their relative and absolute tolerance: rounding of float64 by a step, and of float32 in the last, which a function
that computes in float32 needs. A function with corners, such as ReLU, needs the smaller ones, which rarely meet a corner."""


@contract(*MODULE_KINDS)
def trains_every_parameter(case: Case) -> None:
    """Every parameter gets a gradient, which is finite, for a batch of one token too. It is zero only if the outputs do not
    change with the parameter, as options may have it.

    In training: a part of the model keeps its initial weights, and data parallelism waits for its gradient for ever.

    Seen: the error `Expected to have finished reduction in the prior iteration` of DistributedDataParallel.
    """
    default = case.choose("defaults", [False, True, False])
    runner = ModuleRunner.drawn(case, batch=case.choose("batch", [4, 1]), length=16, edges=True,
                                options={} if default else None)
    runner.module.train()
    named = dict(runner.module.named_parameters())
    frozen = [name for name, p in named.items() if not p.requires_grad]
    require(not frozen, f"{', '.join(frozen)} takes no gradient")
    few = len(runner.x) * runner.x.shape[1] < 64  # tokens: of so few, none may choose one of the experts
    last = not few and runner.x.shape[1] > 16 and case.flip("loss of the last token only")
    reached = set[str]()
    for attempt in range(1 if few else 2 if last else 4):
        runner.module.zero_grad()
        loss = _loss(runner, attempt, last)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
            reached |= _reached(named)
    mixes = runner.kind in ("attention", "position")  # of which a single token may need nothing
    missed = [name for name, p in named.items() if p.grad is None] if not (few and mixes) else []
    if default and not few and not last:
        missed = [name for name in named if name not in reached]
    require(not missed, f"no gradient reaches {', '.join(missed)}, for {list(runner.x.shape[:2])} tokens")
    for name, parameter in named.items():
        if name not in reached and (slope := _slope(runner, parameter, last)):
            raise Broken(f"the gradient of {name} is zero, and the loss changes with it: by {slope:.2g} per unit"
                         f"{', at the last token' if last else ''}")


def _reached(named: dict[str, nn.Parameter]) -> set[str]:
    """The names of the parameters whose gradient is not zero."""
    reached = set()
    for name, parameter in named.items():
        if parameter.grad is not None:
            require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")
            if bool(parameter.grad.any()):
                reached.add(name)
    return reached


def _loss(runner: ModuleRunner, seed: int, last: bool) -> Tensor:
    """A loss of size 1 of drawn inputs, with what the module records; of all outputs, or of those at the last token."""
    with seeded(seed):
        outputs = list(runner.outputs(torch.randn_like(runner.x)).values())
        if last:
            T = runner.x.shape[1]
            outputs = [out[:, -1] if out.shape[1] == T else out[..., -1, :] if out.shape[-2] == T else out for out in outputs]
        flat = torch.cat([out.flatten().to(torch.float64) for out in outputs])
        loss = (flat * torch.randn_like(flat)).sum() / flat.numel() ** 0.5
    for record in runner.records:
        if record.loss:
            loss = loss + record.value
    return loss


@torch.no_grad()
def _slope(runner: ModuleRunner, parameter: nn.Parameter, last: bool) -> float:
    """How the loss changes as a parameter moves; 0.0 if it does not, or only by jumps, as it does where a choice changes."""
    before = parameter.clone()
    with seeded(1):
        direction = torch.randn_like(parameter)
    slopes = []
    for step in STEPS:
        ends = []
        for sign in (1, -1):
            parameter.copy_(before + sign * step * direction)
            ends.append(float(_loss(runner, 0, last)))
        slopes.append((ends[0] - ends[1]) / (2 * step))
    parameter.copy_(before)
    is_smooth = abs(slopes[0] - slopes[1]) < 0.3 * abs(slopes[0])
    return slopes[0] if is_smooth and abs(slopes[0]) > LEAST_SLOPE else 0.0


@contract(*MODULE_KINDS, examples=0.5)
def gradients_are_right(case: Case) -> None:
    """The gradient of the outputs with respect to the input agrees with finite differences, in training mode too.

    In training: with a detached tensor, or a slightly wrong hand-written backward pass, the model still learns, but less.
    """
    runner = ModuleRunner.drawn(case, batch=1, length=3, edges=True, training=True, same_shapes=True)
    buffers = dict(runner.module.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}

    def outputs(x: Tensor) -> Tensor:
        return runner.joined(x)

    x = runner.x.requires_grad_()
    if not outputs(x).requires_grad:
        return
    if any(not torch.equal(buffer, before[name]) for name, buffer in buffers.items()):
        case.unseen.add("gradients in training mode (a pass changes what the next one computes)")
        runner.module.eval()
    _require_slope(runner, x)
    if x.shape[1] > 3:  # the tolerance of `gradcheck` grows with the number of elements
        return
    try:
        torch.autograd.gradcheck(outputs, (x,), fast_mode=True, atol=1e-4, rtol=1e-3)
    except RuntimeError:
        try:  # a function that computes in float32 needs larger steps; one with corners, such as ReLU, needed the smaller ones
            torch.autograd.gradcheck(outputs, (x,), fast_mode=True, eps=1e-3, atol=1e-3, rtol=1e-2)
        except RuntimeError as error:
            raise Broken(" ".join(str(error).split())[:200]) from None


def _require_slope(runner: ModuleRunner, x: Tensor) -> None:
    """Require that a loss of size 1 changes along a drawn direction as its gradient says."""
    with torch.no_grad(), seeded(2):
        direction, weights = torch.randn_like(x), torch.randn_like(runner.joined(x))

    def loss(inputs: Tensor) -> Tensor:
        return (runner.joined(inputs) * weights).sum() / weights.numel() ** 0.5

    (gradient,) = torch.autograd.grad(loss(x), x)
    expected, size = float((gradient * direction).sum()), float(gradient.norm())
    with torch.no_grad():
        for step, relative, absolute in WAYS:
            slope = float(loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
            if abs(slope - expected) <= relative * max(size, abs(slope)) + absolute:
                return
    raise Broken(f"along a drawn direction the loss changes by {slope:.4g} per unit, and the gradient says {expected:.4g}, "
                 f"in a row of {x.shape[1]} tokens in {'training' if runner.module.training else 'eval'} mode")


@contract("head", examples=0.5)
def loss_counts_every_target(case: Case) -> None:
    """Its `cross_entropy`, and the gradient of that, count each target once, in rows of any length; without one it is zero.

    In training: the last tokens of long rows are never learnt, or a batch without targets makes the loss NaN.
    """
    module = case.component()
    T = case.edge_length(5)
    x = case.tensor(2, T, module.d_model).requires_grad_()
    targets = (case.tensor(2, T).abs() * 1000).long() % module.n_outputs
    which = case.choose("targets", ["all", "the last ones", "none", "some"])
    if which == "some":
        targets[case.tensor(2, T) > 0] = -1
    elif which != "all":
        targets[:, :T - 1 if which == "the last ones" else T] = -1
    own = module.cross_entropy(x, targets)
    of_scores = F.cross_entropy(module(x).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    require_equal(own, of_scores, f"its loss and that of its scores, in rows of {T} tokens with {which} of the targets")
    if own.requires_grad:
        gradient, expected = (torch.autograd.grad(loss, x, materialize_grads=True, allow_unused=True)[0]
                              for loss in (own, of_scores))
        require_equal(gradient, expected, f"gradients of its loss and of that of its scores, in rows of {T} tokens with "
                      f"{which} of the targets")
    else:
        require(which == "none", "its loss has no gradient")
