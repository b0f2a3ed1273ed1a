"""Promises about the size of numbers: large ones beside small ones, huge ones where nothing is heard, zeros, large means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, require, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS, ModuleRunner, set_mode
from miniformer.contracts.kit.properties import contract
from miniformer.contracts.kit.rounding import (
    DTYPES,
    eps,
    error_of_tokens,
    in_both_precisions,
    require_near,
    size_of,
    summing_eps,
)
from miniformer.kernel.context import Context, Memory, Signal
from miniformer.kernel.interfaces import PositionEncoding
from miniformer.kernel.layout import Layout

SIZES = (1.0, 100.0, 1e4)
"""Sizes of the hidden states that stand side by side; a few channels of trained models reach the last one."""
LOUD = 1000.0
"""A size of hidden states whose scores are of size a million."""
QUIET = -1e6
"""A bias on all keys, which changes no weight."""
OF_EACH_TOKEN = ("position", "ffn", "norm", "head")
"""The kinds that compute each token by itself, so that tokens of a row may differ in size too."""


@contract(*MODULE_KINDS)
def sizes_do_not_mix(case: Case) -> None:
    """Beside texts whose hidden states are a hundred or ten thousand times as large, a text has the outputs that it has beside
    texts of its own size. The kinds that compute each token by itself promise this of tokens too.

    In training: one text with large activations takes the precision of all others in its batch, or turns them into NaN.
    """
    dtype = case.choose("dtype", DTYPES)
    runner = ModuleRunner.drawn(case, batch=3, length=3, dtype=dtype, training=True)
    order = torch.tensor(case.draw("sizes", st.permutations(SIZES)), dtype=dtype)
    by_token = runner.kind in OF_EACH_TOKEN
    sizes = torch.stack([order.roll(b) if by_token else order[b].expand(3) for b in range(3)])
    with torch.no_grad():
        mixed = runner.outputs(runner.x * sizes[..., None])
        for size in SIZES:
            # the shapes are the same, so all that may differ is how tokens are grouped, as for the experts of a mixture
            alike = runner.outputs(runner.x * torch.tensor(size, dtype=dtype))  # a size of bfloat16, as in `sizes`
            for name, out in mixed.items():
                if "bias" in name or (by_token and out.ndim < 3):  # these are of positions, and of whole rows
                    continue
                pair = [one.transpose(1, 2) if name == "rotate" else one for one in (out, alike[name])]
                for b, t in (sizes == torch.tensor(size, dtype=dtype)).nonzero().tolist():
                    actual, expected = (one[b, t] if one.ndim > 2 else one[b] for one in pair)
                    # an activation such as exp turns a rounding error of its argument into a relative one of its value
                    require_near(actual, expected, 16 * eps(dtype) * size_of(expected) * size,
                                 f"{name} of row {b}, column {t}, which is of size {size:g}, beside other sizes and its own")


@contract("attention", "ffn", "head")
def huge_values_are_not_heard(case: Case) -> None:
    """What may not be heard changes no output, however large it is: padding, later tokens, other documents and padding of a
    memory of size up to a million, or a bias of a million on their scores. What is hidden stays hidden where all that is heard
    has scores of minus a million, or hidden states of size a thousand. Nor does it change a loss.

    In training: a mask that subtracts a number such as 10000 from scores lets the largest ones through.
    """
    dtype, size = case.choose("dtype", DTYPES), case.choose("size", [1e6, 1e6, 1e4])
    if case.under_test.kind != "attention":
        _padding_of_tokens(case, dtype, size)
        return
    harness = AttentionHarness.drawn(case, dtype=dtype)
    if harness.module.cross and harness.module.rule is None:  # models refuse a rule here
        _padding_of_memory(case, harness, dtype, size)
    layout = case.layout(rows=1, max_length=6)
    x = case.tensor(*layout.shape, harness.module.d_model, dtype=dtype)
    hidden = ~harness.visible(layout)[0] & layout.real[0][:, None]
    if bool(hidden.any()):
        _hidden_tokens(case, harness, layout, x, size, hidden)
        if "bias" in harness.module.applies:
            _bias_on_hidden_keys(case, harness, layout, x, size, hidden)


def _hidden_tokens(case: Case, harness: AttentionHarness, layout: Layout, x: Tensor, size: float, hidden: Tensor) -> None:
    """Require that all tokens which a drawn one may not see change neither it nor others that may see none of them."""
    listener = case.choose("listener", hidden.any(dim=1).nonzero()[:, 0].tolist())
    huge = hidden[listener]
    deaf = (layout.real[0] & (hidden | ~huge).all(dim=1)).nonzero()[:, 0]
    direction = case.tensor(*x.shape[1:], dtype=x.dtype)
    def require_deaf(run: Callable[[Tensor], Tensor], of_size: float, what: str) -> None:
        with torch.no_grad():
            before = run(x)[0, deaf]
            for sign in (1, -1):  # the score of a query and a huge key is large and positive for one of the two
                after = run(torch.where(huge[:, None], sign * of_size * direction, x))[0, deaf]
                require_near(after, before, _leak(before, x.dtype, of_size),
                             f"tokens{what} at columns {deaf.tolist()} beside hidden ones of size {of_size:g} and of size 1")

    require_deaf(partial(harness, layout=layout), size, "")
    # a mask that is a number, such as -10000, is above the scores of all visible keys if these are lower
    require_deaf(lambda x: harness(LOUD * x, layout) / LOUD, 1, f" of size {LOUD:g}")
    if "bias" in harness.module.applies:
        require_deaf(lambda x: _biased(harness, layout, x, torch.full((1, 1, 1, 1), QUIET)), 1, f" with a bias of {QUIET:g}")


def _leak(out: Tensor, dtype: torch.dtype, size: float) -> float:
    """How far an output may change with hidden tokens of a size: by rounding, also that of sums which they were part of.

    In float64 these may be sums of products, as of keys and values.
    """
    in_sums = size * size if dtype == torch.float64 else size
    return 16 * (eps(dtype) * size_of(out) + summing_eps(dtype) * in_sums)


def _bias_on_hidden_keys(case: Case, harness: AttentionHarness, layout: Layout, x: Tensor, size: float, hidden: Tensor) -> None:
    """Require that a bias on keys that a token may not see changes nothing."""
    bias = case.tensor(1, harness.module.n_heads, *hidden.shape)
    with torch.no_grad():
        before, after = (_biased(harness, layout, x, one)[layout.real] for one in (bias, torch.where(hidden, size, bias)))
    require_near(after, before, 16 * eps(x.dtype) * size_of(before), f"with a bias of {size:g} on hidden keys and without")


def _biased(harness: AttentionHarness, layout: Layout, x: Tensor, bias: Tensor) -> Tensor:
    """The output with a bias `[1, H, T, T]`."""
    module, T = harness.module, layout.shape[1]
    encoding = PositionEncoding(module.d_model, module.n_heads, 64)
    bias = bias.expand(-1, module.n_heads, T, T)
    return module(x, Context(layout, harness.causal, signal=Signal(encoding, None, bias)))


def _padding_of_memory(case: Case, harness: AttentionHarness, dtype: torch.dtype, size: float) -> None:
    """Require that huge padding of a memory changes nothing."""
    D, queries = harness.module.d_model, Layout.full(3, 2)
    keys = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], rows=3, max_length=5)
    x, hidden = case.tensor(3, 2, D, dtype=dtype), case.tensor(*keys.shape, D, dtype=dtype)
    with torch.no_grad():
        for loud in (1, LOUD):  # as in `_hidden_tokens`
            before = harness.for_memory(loud * x, queries, Memory(loud * hidden, keys))
            for sign in (1, -1):
                huge = torch.where(keys.real[..., None], loud * hidden, sign * size * hidden)
                after = harness.for_memory(loud * x, queries, Memory(huge, keys))
                require_near(after, before, _leak(before, dtype, size),
                             f"with padding of size {size:g} in a memory and of size {loud:g}, beside texts of size {loud:g}")


def _padding_of_tokens(case: Case, dtype: torch.dtype, size: float) -> None:
    """Require that huge padding changes neither the outputs of tokens, a row's summary, nor a loss."""
    module = case.component(dtype)
    set_mode(case, module)
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES], max_length=6)
    x = case.tensor(*layout.shape, module.d_model, dtype=dtype)

    def outputs(x: Tensor) -> dict[str, Tensor]:
        context = Context(layout)
        if case.under_test.kind == "ffn":
            out = module(x, context)[layout.real]
            return {"forward": out, **{record.name: record.value for record in context.records}}
        targets = torch.where(layout.real, layout.positions % module.n_outputs, -1)
        return {"forward": module(x)[layout.real], "summary": module.summary(x, layout),
                "cross_entropy": module.cross_entropy(x, targets)}

    with torch.no_grad():
        before, after = outputs(x), outputs(torch.where(layout.real[..., None], x, size * x))
    for name, out in after.items():
        require_near(out, before[name], 16 * eps(dtype) * max(1.0, size_of(before[name])),
                     f"{name} with padding of size {size:g} and of size 1")


@contract(*MODULE_KINDS)
def extreme_inputs_are_finite(case: Case) -> None:
    """Zeros, equal tokens, numbers of size ten thousand or a ten-thousandth, and tokens of a large mean have finite outputs and
    finite gradients, in every dtype; so have the losses that they lead to.

    In training: one batch of unusually large activations, or of equal ones, turns into NaN, and the run is lost.

    Seen: pytorch#2421, where the gradient of a norm at zero was NaN; that of a square root still is no number.
    """
    dtype = case.choose("dtype", DTYPES)
    runner = ModuleRunner.drawn(case, batch=len(EXTREMES), dtype=dtype, training=True)
    name = case.choose("inputs", [*[ALL_EXTREMES] * len(EXTREMES), *EXTREMES])
    rows = [EXTREMES[of](row[None]) for of, row in zip(EXTREMES, runner.x, strict=True)]
    x = (torch.cat(rows) if name == ALL_EXTREMES else EXTREMES[name](runner.x[:2])).requires_grad_()
    with seeded(0):
        outputs = runner.outputs(x)
        losses = {record.name: record.value for record in runner.records if record.loss}
        if runner.kind == "head":
            targets = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2]) % runner.module.n_outputs
            losses["cross_entropy"] = runner.module.cross_entropy(x, targets)
    for method, out in (outputs | losses).items():
        require(bool(out.isfinite().all()), f"{method} is not finite for {name} in {dtype}")
        if "bias" not in method and method in outputs:
            require(out.dtype == dtype, f"{method} is {out.dtype} for {dtype}")
    inputs = {"its input": x, **dict(runner.module.named_parameters())}
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    for method, out in (outputs | losses).items():
        if not out.requires_grad:
            continue
        weights = torch.linspace(-1.0, 1.0, out.numel() + 1, dtype=torch.float64)[1:].view(out.shape)
        gradients = torch.autograd.grad(out, list(inputs.values()), weights.to(out.dtype), allow_unused=True, retain_graph=True)
        for of, gradient in zip(inputs, gradients, strict=True):
            require(gradient is None or bool(gradient.isfinite().all()),
                    f"the gradient of {method} by {of} is not finite for {name} in {dtype}")


def _one_zero(x: Tensor) -> Tensor:
    """A token of zeros among others."""
    x = x.clone()
    x[:, 1] = 0
    return x


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "a token of zeros": _one_zero,
    "equal tokens": lambda x: x[:, :1].repeat(1, x.shape[1], 1),
    "size 1e4": lambda x: x * 1e4,
    "equal tokens of size 1e4": lambda x: x[:, :1].repeat(1, x.shape[1], 1) * 1e4,
    "size 1e-4": lambda x: x * 1e-4,
    "a mean of 1e4": lambda x: x + 1e4,
    "equal numbers": lambda x: x[..., :1].repeat(1, 1, x.shape[-1]),
}
"""Inputs that a computation may not be ready for, made from one of normally distributed numbers."""
ALL_EXTREMES = f"a row each of {', '.join(EXTREMES)}"


@contract("ffn", "norm", "head", examples=0.5)
def large_means_cost_no_precision(case: Case) -> None:
    """In float32, numbers with a mean a thousand or ten thousand times their deviation have the outputs that they have in
    float64, up to the rounding of the mean.

    In training: a variance that is computed as a difference of two large numbers is noise, or negative.

    Seen: onnxruntime#28463, a layer norm that gave NaN for numbers near 40000.
    """
    module, mean = case.component(), case.choose("mean", [1e3, 1e4])
    low, exact = in_both_precisions(module, torch.float32)
    x = (case.tensor(2, 5, module.d_model) + mean).float()
    with torch.no_grad():
        expected = ModuleRunner.of(case, exact, x.double()).outputs()
        for name, out in ModuleRunner.of(case, low, x).outputs().items():
            # a median, since rounding may change a choice, such as a token's expert
            error, allowed = float(error_of_tokens(out, expected[name]).median()), 16 * eps(torch.float32) * mean
            require(error <= allowed, f"with a mean of {mean:g} and a deviation of 1, {name} is {error:.1e} of its size off; "
                                      f"rounding explains {allowed:.1e}")
