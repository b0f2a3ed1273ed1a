"""What components of all kinds promise: to be made, saved, moved and trained like any module, and to do nothing else."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.errors import SpecError
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.options import complete

from . import drawing
from .case import Case, require, same, seeded, undisturbed
from .probe import MODULES, Probe
from .properties import Broken, contract

ORDINARY: dict[str, Any] = {"d_model": 16, "n_heads": 2, "d_ff": 24, "max_seq_len": 64, "n_outputs": 5, "lr": 0.01,
                            "weight_decay": 0.1, "total_steps": 20, "warmup_steps": 4}


@cache
def ordinary_config() -> TransformerConfig:
    """The only size of an assembly."""
    return TransformerConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=1, max_seq_len=64)


@contract(*KINDS)
def builds_from_its_options(case: Case) -> None:
    """It is built at ordinary sizes, from every set of options that it does not refuse with a ValueError, on the meta device
    too; a set of options survives JSON, and an option that it does not have is refused.

    In training: a run ends at its start, or a saved model cannot be made again.

    Seen: KempnerForge#180, where a checkpoint did not record what made the model.
    """
    options = case.options()
    subject = case.subject
    try:
        subject.build({**ORDINARY, "config": ordinary_config()}, {})
    except ValueError as error:
        if not any(option.is_required() for option in _fields(subject.cls).values()):
            raise Broken(f"it refuses ordinary sizes and its own defaults: {error}") from None
    try:
        chosen = complete(subject.cls, {**options, **subject.fixed}, subject.name)
        again = complete(subject.cls, json.loads(json.dumps(chosen)), subject.name)
    except SpecError:
        reject()
    require(again == chosen, f"options changed on their way through JSON: {chosen} and {again}")
    try:
        complete(subject.cls, {**chosen, "no_such_option": 1}, subject.name)
    except SpecError:
        pass
    else:
        raise Broken("it takes an option that it does not have")
    if subject.kind not in MODULES:
        return
    sizes = case.sizes()
    built = case.built(sizes, options)
    with torch.device("meta"):
        ghost = case.built(sizes, options)
    require(shapes(built) == shapes(ghost), "on the meta device its parameters have other names or shapes")
    require(all(t.is_meta for t in [*ghost.parameters(), *ghost.buffers()]), "on the meta device it makes tensors elsewhere")


def _fields(cls: type) -> Mapping[str, Any]:
    from miniformer.kernel.options import options_of

    return options_of(cls).model_fields


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer."""
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


@contract(*MODULES, examples=0)  # one example, of which nothing is drawn
def every_option_counts(case: Case) -> None:
    """Each option makes a difference: to its shapes, its outputs, what it records or what it remembers.

    In training: a comparison of settings compares a model with itself.

    Seen: torchtune#1791, where attn_dropout was said to be ignored outside of training and was not.
    """
    choices = drawing.choices_of(case.subject.cls)
    rng = random.Random(0)
    for name in sorted(choices.keys() - case.subject.fixed.keys()):
        if len(choices[name]) < 2:
            continue
        for attempt in range(60):
            others = {} if not attempt else {other: rng.choice(found) for other, found in choices.items() if other != name}
            prints = {p for value in choices[name] if (p := _fingerprint(case, {**others, name: value})) is not None}
            if len(prints) > 1:
                break
        else:
            raise Broken(f"option {name!r} makes no difference: {', '.join(map(repr, choices[name][:4]))}")


def _fingerprint(case: Case, options: Mapping[str, Any]) -> bytes | None:
    """All that can be seen of a component with these options; None: it refuses them."""
    try:
        with seeded(0):
            module = case.subject.build(ORDINARY, options).double().train()
    except ValueError:
        return None
    with seeded(1), torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
        probe = Probe.of(case, module, torch.randn(2, 40, ORDINARY["d_model"], dtype=torch.float64))
        seen: list[Any] = [shapes(module), probe.joined().numpy().tobytes(),
                           [(r.name, float(r.value.sum())) for r in probe.records]]
        if case.subject.kind == "attention" and case.subject.has_state:
            state = module.init_state(2, 3)
            seen.append(None if state is None else state.nbytes)
        if case.subject.kind == "head":
            seen.append(module.tie(nn.Parameter(torch.randn(ORDINARY["n_outputs"], ORDINARY["d_model"], dtype=torch.float64))))
    return repr(seen).encode()


@contract(*MODULES)
def is_saved_and_loaded(case: Case) -> None:
    """Its state_dict, written and loaded into a fresh one, gives the same outputs to the last bit, and pickling it does too.

    In training: parts that are not registered as parameters or buffers are not trained, not moved to the GPU, and lost on
    saving.

    Seen: parts kept in a Python list, which nn.ModuleList is made for.
    """
    probe = Probe.drawn(case)
    file = io.BytesIO()
    torch.save(probe.module.state_dict(), file)
    with seeded(12345):
        fresh = case.built(case.last_sizes, case.chosen).double().eval()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        out = probe.joined()
        require(torch.equal(Probe.of(case, fresh, probe.x).joined(), out), "loaded into a fresh one it gives other outputs")
        try:
            copy = pickle.loads(pickle.dumps(probe.module))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Broken(f"it cannot be pickled for another process: {error}") from None
        require(torch.equal(Probe.of(case, copy, probe.x).joined(), out), "pickled it gives other outputs")


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
        except NotImplementedError:  # it looks at values to decide what it computes, which only a device with values shows
            return
        except RuntimeError as error:
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


@contract(*MODULES, examples=0.5)
def leaves_the_process_alone(case: Case) -> None:
    """Building it and running it in eval mode changes no random state beyond drawing its first weights, and no setting of
    torch.

    In training: every run has the same seed however it is set, or another part of the program computes in another precision.

    Seen: pytorch-lightning#20204, where loading a checkpoint moved the global random state.
    """
    sizes, options = case.sizes(), case.options()
    after_seed = []
    with undisturbed("building it"):
        for seed in (1, 2):
            with seeded(seed):
                module = case.built(sizes, options).double().eval()
                after_seed.append(torch.get_rng_state())
    require(not torch.equal(*after_seed), "building it sets torch's seed")
    probe = Probe.of(case, module, case.tensor(2, 4, module.d_model))
    state = torch.get_rng_state()
    with undisturbed("running it"), torch.no_grad():
        probe.outputs()
    require(torch.equal(torch.get_rng_state(), state), "running it in eval mode draws from torch's random numbers")


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
