"""Promises of every module about its outputs: shape, dtype and device, other rows, randomness."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.config.counting import looks_at_values
from miniformer.contracts.kit.all_inputs import MEMORY_LAYOUTS, inputs_and_calls
from miniformer.contracts.kit.case import Case, require, require_equal, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS, RANDOM_TRAINING, ModuleRunner
from miniformer.contracts.kit.properties import Broken, contract


@contract("attention", "ffn", "norm", "head", examples=0.7)
def keeps_the_shape(case: Case) -> None:
    """The output of an attention, a feed-forward or a norm has the shape of its input, whatever that is; a head gives
    `n_outputs` numbers for each position, for each selected one, or for each row as its summary.

    In training: an output of another shape is broadcast over the batch without an error, or a run ends in the middle of one.
    """
    kind, batch = case.under_test.kind, case.choose("batch", [2, 1, 3])
    runner = ModuleRunner.drawn(case, batch=batch, length=5, edges=True, training=True)
    x, module = runner.x, runner.module
    B, T, D = x.shape
    with torch.no_grad():
        expected = {"forward": [B, T, D]}
        if kind == "head":
            expected = {"forward": [B, T, module.n_outputs], "summary": [B, module.n_outputs]}
            select = case.tensor(B, T) > 0.5
            _require_shape(module(x, select), [int(select.sum()), module.n_outputs], f"{int(select.sum())} selected positions")
        for name, out in runner.outputs().items():
            _require_shape(out, expected[name], f"{name} of {[B, T, D]}")
        if kind == "norm":
            for shape in ([D], [3, D], [B, 2, T, D]):
                _require_shape(module(case.tensor(*shape)), shape, f"forward of {shape}")


def _require_shape(out: Any, expected: list[int], what: str) -> None:
    found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
    require(found == expected, f"{what} is {found}, where {expected} is expected")


@contract(*MODULE_KINDS)
def keeps_dtype_and_device(case: Case) -> None:
    """Outputs have the dtype and the device of the inputs.

    In training: one float64 constant makes every later layer slow or fail, and a tensor made on the CPU stops the run on a GPU.

    Seen: transformers#24262, rotary positions that returned float32 in half precision.
    """
    dtype = case.choose("dtype", [torch.float32, torch.bfloat16, torch.float64])
    runner = ModuleRunner.drawn(case, dtype=dtype)
    with torch.no_grad():
        for name, out in runner.outputs().items():
            if "bias" not in name:  # a bias is computed from positions, which are integers
                require(out.dtype == dtype, f"{name} gives {out.dtype} for {dtype}")
        ghost = ModuleRunner.of(case, runner.module.to("meta"), runner.x.to("meta"))
        try:
            for name, out in ghost.outputs().items():
                require(out.is_meta, f"{name} gives a tensor on {out.device} for one on another device")
        except RuntimeError as error:
            if looks_at_values(error):  # meta tensors have no values: only a real device could show more of this component
                return
            raise Broken(f"on another device than the CPU: {' '.join(str(error).split())[:200]}") from None


@contract(*MODULE_KINDS, examples=0.5)
def is_the_same_twice_in_eval(case: Case) -> None:
    """In eval mode it has the same outputs each time, whatever the random state. In training mode it has the same outputs under
    the same seed.

    In training: dropout that stays on in evaluation makes every measured figure wrong.

    Seen: pytorch#124464: scaled_dot_product_attention applies dropout in evaluation too unless its caller turns it off, which
    nanoGPT, timm and others did not.
    """
    runner = ModuleRunner.drawn(case)

    def outputs(training: bool, seed: int) -> Tensor:
        # each pass is made by a copy, since changes that a pass leaves behind are the matter of the next property
        with seeded(seed), torch.no_grad():
            return ModuleRunner.of(case, copy.deepcopy(runner.module).train(training), runner.x).joined()

    require(torch.equal(outputs(False, 1), outputs(False, 2)), "in eval mode two runs differ")
    require(torch.equal(outputs(True, 3), outputs(True, 3)), "in training mode two runs under one seed differ")


@contract(*MODULE_KINDS, examples=0.5)
def a_pass_leaves_it_as_it_was(case: Case) -> None:
    """A pass in training mode leaves the module unchanged: in either mode, the outputs are the same as before.

    In training: activation checkpointing, which makes each pass twice, and gradient accumulation train another model, and the
    weights of data-parallel processes drift apart.
    """
    runner, outputs = ModuleRunner.drawn(case), []
    buffers = dict(runner.module.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.no_grad():
        for training in (False, True, False, True):
            runner.module.train(training)
            with seeded(1):
                outputs.append(runner.joined())
    changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])]
    for mode, first, second in zip(("eval", "training"), outputs[:2], outputs[2:], strict=True):
        hint = f"; changed: {', '.join(changed)}" if changed else ""
        require(torch.equal(first, second), f"after a pass in training mode it gives other outputs in {mode} mode{hint}")


@contract(*MODULE_KINDS, examples=0.5)
def runs_under_autocast(case: Case) -> None:
    """Under autocast to bfloat16, outputs are finite and close to those in float32, and gradients reach the same parameters.

    In training: a run with `precision` bf16 ends at its first step, or learns from noise.
    """
    runner = ModuleRunner.drawn(case, dtype=torch.float32, training=True)
    x, parameters = runner.x.requires_grad_(), dict(runner.module.named_parameters())
    exact = runner.joined(x)
    weights = torch.linspace(-1.0, 1.0, exact[0].numel(), dtype=exact.dtype)
    inputs = {name: tensor for name, tensor in {"its input": x, **parameters}.items() if tensor.requires_grad}
    exact_gradients = torch.autograd.grad((exact * weights).sum(), list(inputs.values()), allow_unused=True)
    dtype = case.choose("input", [torch.float32, torch.bfloat16])  # of the residual stream, or of another layer's output
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns when a fused norm gets two dtypes
        rounded = runner.joined(x.to(dtype))
    difference = (rounded - exact).detach().abs()
    require(bool(difference.isfinite().all()), "outputs are not finite")
    # the median, since rounding may change a choice, such as a token's expert, and then its output differs entirely
    error = float(difference.median() / exact.detach().square().mean().sqrt().clamp(min=1e-3))
    require(error < 0.1, f"outputs are {error:.2f} of their size off")
    require(rounded.requires_grad, "outputs have no gradient, and in float32 they do")
    gradients = torch.autograd.grad((rounded * weights).sum(), list(inputs.values()), allow_unused=True)
    for name, gradient, expected in zip(inputs, gradients, exact_gradients, strict=True):
        require(gradient is None or bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
        require(gradient is not None or expected is None, f"no gradient reaches {name}, and in float32 one does")


@contract(*MODULE_KINDS)
def leaves_its_inputs_alone(case: Case) -> None:
    """It changes none of the tensors that it is given in place: hidden states in any dtype and memory layout, positions,
    documents, masks, biases, memories, selections and targets.

    In training: the residual stream, or a mask that other layers still need, is overwritten, and autograd fails or is wrong.
    """
    # a cast to the dtype it has is no copy, and casts are mostly to float32; noise is mostly put on in training
    dtype = case.choose("dtype", [torch.float32, torch.float32, torch.bfloat16, torch.float64])
    runner = ModuleRunner.drawn(case, dtype=dtype)
    runner.module.train(case.choose("mode", ["training", "evaluation", "training"]) == "training")
    in_memory = case.choose("in memory", [*["contiguous"] * 2, *MEMORY_LAYOUTS])
    x = MEMORY_LAYOUTS[in_memory](runner.x)
    given, calls = inputs_and_calls(case, runner.kind, runner.module, x, runner.causal)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in given.items()}
    with torch.no_grad():
        for call in calls:
            try:
                call()
            except RuntimeError as error:  # it may want contiguous inputs, which is no change of them
                if "written-to tensor" in str(error):
                    raise Broken("it writes to an input whose rows share their memory") from None
                if in_memory == "contiguous":
                    raise
    for name, tensor in given.items():
        values, version = before[name]
        require(torch.equal(tensor, values) and tensor._version == version, f"it changes {name} in place")


@contract(*MODULE_KINDS)
def rows_stand_alone(case: Case) -> None:
    """A row of a batch has the outputs that it has alone, and the order of the rows does not matter.

    In training: what the model makes of a text depends on the other texts in its batch.

    Seen: transformers#47394, where a loss leaked targets across the rows of a batch.
    """
    runner = ModuleRunner.drawn(case, batch=3, training=True, long=True, same_shapes=True)
    order = case.draw("order", st.permutations(range(3)))
    others = runner.x.clone()
    others[order[1:]] += 3
    with torch.no_grad():
        out = runner.outputs()
        for name, beside_others in runner.outputs(others).items():
            require_equal(beside_others[order[0]], out[name][order[0]], f"{name} of row {order[0]} beside other rows")
        if runner.fixed:  # in another shape it draws other numbers
            runner.module.eval()
            case.unseen.add(f"rows alone in {RANDOM_TRAINING}")
            out = runner.outputs()
        for name, reordered in runner.outputs(runner.x[order]).items():
            require_equal(reordered, out[name][order], f"{name} with rows in order {order}")
        for b in range(3):
            for name, alone in runner.outputs(runner.x[b:b + 1]).items():
                require_equal(alone, out[name][b:b + 1], f"{name} of row {b} alone and beside others")


@contract(*MODULE_KINDS, thorough=True, note=True, examples=0.02)
def compiles(case: Case) -> None:
    """torch.compile compiles it without a graph break, and the outputs are the same.

    In training: it runs, but more slowly than it could.
    """
    runner = ModuleRunner.drawn(case, dtype=torch.float32)
    with torch.no_grad():
        expected = runner.joined()
        compiled = torch.compile(runner.joined, backend="eager", fullgraph=True, dynamic=False)
        require_equal(compiled(runner.x), expected, "compiled and not", 1e-5)


@contract(*MODULE_KINDS, thorough=True, note=True, examples=0.02)
def exports(case: Case) -> None:
    """torch.export can export it.

    In training: nothing shows; the model cannot be deployed as a graph.

    Seen: pytorch#153955, which asks for dynamic shapes.
    """
    runner = ModuleRunner.drawn(case, dtype=torch.float32)
    torch.export.export(_AllMethods(runner), (runner.x,))


class _AllMethods(nn.Module):
    """All methods of a component's kind as one forward."""

    def __init__(self, runner: ModuleRunner) -> None:
        super().__init__()
        self.module, self.runner = runner.module, runner

    def forward(self, x: Tensor) -> Tensor:
        return self.runner.joined(x)
