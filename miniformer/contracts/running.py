"""What modules of all kinds promise of their running: dtype and device, neighbours, randomness, and gradients."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.config.counting import looks_at_values

from .case import Case, require, same, seeded
from .probe import MODULES, Probe
from .properties import Broken, contract


@contract(*MODULES)
def keeps_dtype_and_device(case: Case) -> None:
    """Outputs have the dtype and the device of the inputs.

    In training: one float64 constant makes every later layer slow or fail, and a tensor made on the CPU stops the run on a GPU.

    Seen: transformers#24262, rotary positions that returned float32 in half precision.
    """
    dtype = case.choose("dtype", [torch.float32, torch.bfloat16, torch.float64])
    probe = Probe.drawn(case, dtype=dtype)
    with torch.no_grad():
        for name, out in probe.outputs().items():
            if "bias" not in name:  # made from positions, which have no such dtype
                require(out.dtype == dtype, f"{name} gives {out.dtype} for {dtype}")
        ghost = Probe.of(case, probe.module.to("meta"), probe.x.to("meta"))
        try:
            for name, out in ghost.outputs().items():
                require(out.is_meta, f"{name} gives a tensor on {out.device} for one on another device")
        except RuntimeError as error:
            if looks_at_values(error):  # of a component that does, only a device with values shows more
                return
            raise Broken(f"on another device than the CPU: {' '.join(str(error).split())[:200]}") from None


@contract(*MODULES)
def is_the_same_twice_in_eval(case: Case) -> None:
    """In eval mode it gives the same outputs each time, whatever the random state; in training mode the same under the same
    seed.

    In training: dropout that stays on in evaluation makes every measured figure wrong.

    Seen: pytorch#124464: scaled_dot_product_attention drops out in evaluation unless it is told not to; so did nanoGPT, timm
    and others.
    """
    probe = Probe.drawn(case)
    with torch.no_grad():
        with seeded(1):
            one = probe.joined()
        with seeded(2):
            require(torch.equal(probe.joined(), one), "in eval mode two runs differ")
        probe.module.train()
        with seeded(3):
            one = probe.joined()
        with seeded(3):
            require(torch.equal(probe.joined(), one), "in training mode two runs under one seed differ")


@contract(*MODULES)
def leaves_its_inputs_alone(case: Case) -> None:
    """It changes no tensor that it is given.

    In training: the residual stream, which others still need, is overwritten, and autograd fails or is wrong.
    """
    probe = Probe.drawn(case)
    before, version = probe.x.clone(), probe.x._version
    with torch.no_grad():
        probe.outputs()
    require(torch.equal(probe.x, before) and probe.x._version == version, "it changes its input in place")


@contract(*MODULES)
def rows_stand_alone(case: Case) -> None:
    """A row of a batch gives what it gives alone and in any order.

    In training: what a text means hangs on who else is in its batch.

    Seen: transformers#47394, where a loss leaked targets across the rows of a batch.
    """
    probe = Probe.drawn(case, batch=3)
    order = case.draw("order", st.permutations(range(3)))
    with torch.no_grad():
        out = probe.outputs()
        for name, moved in probe.outputs(probe.x[order]).items():
            same(moved, out[name][order], f"{name} with rows in order {order}")
        for b in range(3):
            for name, alone in probe.outputs(probe.x[b:b + 1]).items():
                same(alone, out[name][b:b + 1], f"{name} of row {b} alone and beside others")


@contract(*MODULES)
def trains_every_parameter(case: Case) -> None:
    """Gradients reach every parameter, and are finite.

    In training: a part of the model stays as it was made, and data parallelism waits for its gradient for ever.

    Seen: the error `Expected to have finished reduction in the prior iteration` of DistributedDataParallel.
    """
    default = case.flip("defaults")
    probe = Probe.drawn(case, batch=4, length=16, options={} if default else None)
    probe.module.train()
    frozen = [name for name, p in probe.module.named_parameters() if not p.requires_grad]
    require(not frozen, f"{', '.join(frozen)} takes no gradient")
    reached = set[str]()
    for attempt in range(4):
        probe.module.zero_grad()
        with seeded(attempt):
            x = torch.randn_like(probe.x)
            out = probe.joined(x)
            loss = (out * torch.randn_like(out)).sum() + sum(r.value for r in probe.records if r.loss)
        if not loss.requires_grad:
            continue
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in probe.module.named_parameters():
            if parameter.grad is not None:
                require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")
                if bool(parameter.grad.any()):
                    reached.add(name)
    names = [name for name, _ in probe.module.named_parameters()]
    lost = [name for name in names if name not in reached] if default else [
        name for name, p in probe.module.named_parameters() if p.grad is None]
    require(not lost, f"no gradient reaches {', '.join(lost)}")


@contract(*MODULES, examples=0.5)
def gradients_are_right(case: Case) -> None:
    """The gradient of its outputs by its input is the slope that is found by trying.

    In training: a detached tensor or a backward pass of one's own that is a little wrong still learns, but less.
    """
    probe = Probe.drawn(case, batch=1, length=3)

    def outputs(x: Tensor) -> Tensor:
        return probe.joined(x)

    x = probe.x.requires_grad_()
    if not outputs(x).requires_grad:
        return
    try:
        torch.autograd.gradcheck(outputs, (x,), fast_mode=True, atol=1e-4, rtol=1e-3)
    except RuntimeError:
        try:  # what computes in float32 inside needs larger steps, and what has corners needs smaller ones
            torch.autograd.gradcheck(outputs, (x,), fast_mode=True, eps=1e-3, atol=1e-3, rtol=1e-2)
        except RuntimeError as error:
            raise Broken(" ".join(str(error).split())[:200]) from None


@contract(*MODULES, thorough=True, note=True, examples=0.02)
def compiles(case: Case) -> None:
    """torch.compile takes it whole, without a graph break, and it gives the same.

    In training: it runs, but slower than it could.
    """
    probe = Probe.drawn(case, dtype=torch.float32)
    with torch.no_grad():
        expected = probe.joined()
        found = torch.compile(probe.joined, backend="eager", fullgraph=True, dynamic=False)(probe.x)
        same(found, expected, "compiled and not", 1e-5)


@contract(*MODULES, thorough=True, note=True, examples=0.02)
def exports(case: Case) -> None:
    """torch.export captures it.

    In training: nothing shows; the model cannot be deployed as a graph.

    Seen: pytorch#153955, which asks for dynamic shapes.
    """
    probe = Probe.drawn(case, dtype=torch.float32)
    torch.export.export(_Whole(probe), (probe.x,))


class _Whole(nn.Module):
    """All methods of a component's kind as one forward."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.module, self.probe = probe.module, probe

    def forward(self, x: Tensor) -> Tensor:
        return self.probe.joined(x)
