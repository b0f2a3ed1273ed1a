"""Promises about float32 and bfloat16: what is heard, where positions are, what a loss is, and that no input is written to."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, relative_difference, require
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.module_runner import MODULE_KINDS, ModuleRunner
from miniformer.contracts.kit.properties import contract
from miniformer.contracts.kit.rounding import (
    eps,
    error_of_tokens,
    in_both_precisions,
    require_near,
    size_of,
)
from miniformer.kernel.layout import Layout

EXACT = 256
"""The number of positions that bfloat16 tells apart; from here on it rounds whole numbers."""
MANY = 420
"""A number of equal weights whose sum does not grow beyond 256 if it is taken one by one in bfloat16."""
RECURRENT = 4
"""How many times as far a recurrence may round over many tokens that all push it the same way."""
DTYPES_AND_LENGTHS = [*[(torch.bfloat16, 290)] * 2, (torch.bfloat16, 5), (torch.float32, 5), (torch.float32, 290)]


def _long_layout(case: Case) -> Layout:
    """A row of more positions than bfloat16 can tell apart, which may be padded on the left or follow another document."""
    length = case.draw("length", st.integers(EXACT + 4, drawing.LONG))
    kind = case.choose("row", [drawing.FULL, drawing.LEFT, drawing.PACKED])
    if kind == drawing.FULL:
        return Layout.full(1, length)
    if kind == drawing.LEFT:
        return Layout.from_lengths([length], length + 5, "left")
    return Layout.from_documents(torch.tensor([[1] * 5 + [2] * length]))


@contract("attention", examples=0.7)
def hears_alike_in_low_precision(case: Case) -> None:
    """In float32 and bfloat16 a token's output depends on no token that the rules hide from it, and on those near it that
    matter to it in float64, also beyond position 256.

    In training: bfloat16 rounds whole numbers above 256, so positions and masks that are computed in it show a token the next
    one, or hide the last one, in long texts only.

    Seen: OneTrainer#1177, where tokens were mixed up because their positions were in bfloat16.
    """
    dtype, length = case.choose("dtype and length", DTYPES_AND_LENGTHS)
    harness, long = AttentionHarness.drawn(case), length > EXACT
    layout = _long_layout(case) if long else case.layout(rows=1)
    low, exact = in_both_precisions(harness.module, dtype)
    real, positions = layout.real[0], layout.positions[0]
    near = (positions[:, None] - positions).abs() <= 4
    visible = harness.visible(layout)[0]
    x = case.tensor(*layout.shape, harness.module.d_model).to(dtype)
    with torch.no_grad():
        runs = [(AttentionHarness(module, harness.causal, harness.encoding), x.to(of))
                for module, of in ((low, dtype), (exact, torch.float64))]
        before, exactly_before = (run(tokens, layout)[0] for run, tokens in runs)
        for s in _columns(case, layout, long):
            changed = x.index_copy(1, torch.tensor([s]), 8 * case.tensor(1, 1, x.shape[2]).to(dtype))
            after, exactly_after = (run(changed.to(tokens.dtype), layout)[0] for run, tokens in runs)
            deaf = real & ~visible[:, s]
            require_near(after[deaf], before[deaf], 8 * eps(dtype) * size_of(before),
                         f"in {dtype}, tokens that may not see column {s}, before and after it changes")
            # where it is most of what a token hears, rounding cannot hide it; a majority, since rounding may change a choice
            moved = (exactly_after - exactly_before).abs().amax(dim=-1)
            matters = visible[:, s] & near[:, s] & real & (moved > 0.25 * size_of(exactly_before))
            hears = (after != before).any(dim=-1)
            require(not bool(matters.any()) or bool(hears[matters].double().mean() >= 0.5),
                    f"in {dtype}, tokens that may see column {s} do not change with it, and in float64 they do")


def _columns(case: Case, layout: Layout, long: bool) -> list[int]:
    """A few columns: of a long row, three neighbours beyond the positions that bfloat16 tells apart."""
    T = layout.shape[1]
    if not long:
        return case.indices("columns", T)[:4]
    beyond = (layout.positions[0] > EXACT - 1).nonzero()[:, 0].tolist()
    first = case.draw("column", st.integers(0, max(0, len(beyond) - 3)))
    return beyond[first:first + 3]


@contract(*MODULE_KINDS, examples=0.6)
def low_precision_is_near(case: Case) -> None:
    """In float32 and bfloat16 its outputs are those of float64, up to rounding, in short rows, in rows of some 300 tokens, and
    in rows of some 400 that are almost equal, whose weights add up to hundreds.

    In training: what is computed in fewer digits than the model has, or by another formula in half precision, adds noise that
    nothing shows, mostly to the ends of long texts.

    Seen: transformers#29285, rotary positions that lost their precision in bfloat16.
    """
    dtype, length = case.choose("dtype and length", DTYPES_AND_LENGTHS)
    module = case.component(max_seq_len=512) if case.under_test.kind == "position" else case.component()
    low, exact = in_both_precisions(module, dtype)
    x = case.tensor(1, length, module.d_model)
    steps = 2 if length > EXACT else 1  # of a sum that runs over a long row, as in a recurrence, about sqrt(T) roundings add up
    _compare_precisions(case, low, exact, x.to(dtype), "tokens", steps)
    if length > EXACT:
        many = case.tensor(1, MANY, module.d_model)
        _compare_precisions(case, low, exact, (many[:, :1] + 0.03 * many).to(dtype), "almost equal tokens", RECURRENT)


def _compare_precisions(case: Case, low: Any, exact: Any, x: Tensor, tokens: str, steps: int = 1) -> None:
    """Require that outputs for `x` and its dtype are those of float64, up to rounding, which `steps` times adds up."""
    dtype = x.dtype
    with torch.no_grad():
        expected = ModuleRunner.of(case, exact, x.double()).outputs()
        outputs = ModuleRunner.of(case, low, x).outputs()
    for name, out in outputs.items():
        # medians, since rounding may change a choice, such as a token's expert, and then its output differs entirely
        pair = (one.transpose(1, 2).flatten(2) if name == "rotate" else one for one in (out, expected[name]))
        errors = error_of_tokens(*pair)
        allowed = steps * (2 ** 4 * eps(dtype) if dtype == torch.bfloat16 else 2 ** 11 * eps(dtype))
        for start in (0, EXACT + 1):
            if len(errors) > start:
                error = float(errors[start:].median())
                where = f"{tokens} beyond 256" if start else f"all {tokens}"
                require(error <= allowed, f"in {dtype}, {name} of {where} is {error:.1e} of its size off; rounding explains "
                                          f"{allowed:.1e}")


def _has_no_hook(under_test: ComponentUnderTest) -> str:
    return "" if under_test.cls.hooks() else "it has no hook"


@contract("position", skip=_has_no_hook, examples=0.6)
def far_neighbours_differ(case: Case) -> None:
    """Where neighbouring positions are told apart at the beginning of a text, they are so at position 4000, in float64 and in
    bfloat16; and if the encoding declares `relative`, distances count there as they do at the beginning.

    In training: positions that were rounded, as to bfloat16 or float16, are equal for several tokens in a row, and the model
    loses their order in long texts only.

    Seen: Megatron-LM#535: in float16 all positions beyond some length were encoded alike.
    """
    dtype = case.choose("dtype", [torch.float64, torch.bfloat16])
    encoding = case.component(dtype, max_seq_len=4096)
    start = case.choose("start", [260, 1000, 4000])
    E = encoding.d_model // encoding.n_heads
    x, q = case.tensor(1, 1, encoding.d_model, dtype=dtype), case.tensor(1, encoding.n_heads, 1, E, dtype=dtype)

    def at(first: int) -> dict[str, Tensor]:
        """By hook, the encodings of 16 positions from `first` on: `[16, N]`, or of a bias `[16, H, 16]`."""
        positions = torch.arange(first, first + 16)[None]
        where = encoding.precompute(positions)
        encodings = {"embed": encoding.embed(x.expand(-1, 16, -1), positions)[0]}
        if "rotate" in encoding.hooks():
            encodings["rotate"] = encoding.rotate(q.expand(-1, -1, 16, -1), where, "q")[0].transpose(0, 1).flatten(1)
            keys = encoding.rotate(q.expand(-1, -1, 16, -1), where, "k")[0]
            encodings["scores"] = encodings["rotate"].view(16, -1, E).transpose(0, 1) @ keys.transpose(-1, -2)
        for name in ("bias", "causal_bias"):
            if (bias := getattr(encoding, name)(positions, positions)) is not None:
                encodings[name] = bias[0] if name == "bias" else bias[0].tril()  # no token sees the later ones
        return {name: value.double() for name, value in encodings.items()}

    with torch.no_grad():
        begin, far = at(1), at(start)
    for name, value in far.items():
        of_pairs = name in ("bias", "causal_bias", "scores")
        if name != "scores":
            apart, apart_far = (_share_of_neighbours_apart(one, of_pairs) for one in (begin[name], value))
            require(apart_far >= 0.8 * apart, f"at position {start} in {dtype}, {name} tells {apart_far:.0%} of neighbours "
                                              f"apart, and {apart:.0%} at the beginning")
        if of_pairs and encoding.relative and dtype == torch.float64:
            # an angle that is computed in float32 is rounded in proportion to the position
            allowed = 1e-4 + 8 * eps(torch.float32) * start
            error = relative_difference(value, begin[name])
            require(error <= allowed, f"{name} of equal distances at position {start} and at the beginning: {error:.1e} apart")


def _share_of_neighbours_apart(encodings: Tensor, of_pairs: bool) -> float:
    """The share of neighbours whose encodings differ, by a hundredth of the largest difference at least."""
    if of_pairs:  # [H, T, S]: a query's keys up to 7 places away, and one further
        steps = (encodings[..., 1:] - encodings[..., :-1]).abs().amax(dim=0)
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(15), indexing="ij")
        steps = steps[(rows - columns).abs() <= 7]
    else:
        steps = (encodings[1:] - encodings[:-1]).abs().amax(dim=-1)
    return float((steps > 0.01 * steps.max()).double().mean()) if size_of(steps) else 0.0


@contract("head", examples=0.1)
def its_loss_is_exact(case: Case) -> None:
    """Its `cross_entropy` is in float32 at least, also in bfloat16 and under autocast. It is that of float64 up to the rounding
    of the scores, for many classes and hundreds of tokens, and in float32 for each of some tokens alone.

    In training: a loss in bfloat16 has three digits; its curve has steps, and small improvements do not show.

    Seen: optax#1020, where losses of bfloat16 scores were rounded to a grid.
    """
    module = case.component(n_outputs=CLASSES)
    x = case.tensor(2, 200, module.d_model)
    targets = torch.arange(400).view(2, 200) * 7 % CLASSES
    targets[0, :9] = -1
    _compare_losses_of_tokens(module, x, targets)
    for scale in (1e-3, 1.0):
        for how, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("autocast", torch.float32)):
            low, exact = in_both_precisions(module, dtype)
            tokens = (x * scale).to(dtype)
            _compare_losses(low, exact, tokens.requires_grad_(), targets, how)


def _compare_losses(low: Any, exact: Any, x: Tensor, targets: Tensor, how: str) -> None:
    """Require that a loss and its gradient are those of float64, up to rounding."""
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss = low.cross_entropy(x, targets)
    require(loss.dtype == torch.float32, f"in {how} its loss is {loss.dtype}")
    exact_x = x.detach().double().requires_grad_()
    scores = exact(exact_x).flatten(0, 1)
    expected, of_larger_scores = (F.cross_entropy(factor * scores, targets.flatten(), ignore_index=-1, reduction="sum")
                                  for factor in (1, 1 + eps(torch.bfloat16) / 2))
    error = abs(float(loss.detach()) / float(expected.detach()) - 1)
    # scores are rounded up and down, which cancels over so many tokens; what is left is less than one rounding of the sum
    allowed = 2 ** 8 * eps(torch.float32) if how == "float32" else eps(torch.bfloat16) / 16
    if how == "autocast":  # it may also round a factor of all scores, such as a temperature
        allowed += abs(float(of_larger_scores.detach() / expected.detach()) - 1)
    require(error <= allowed, f"in {how} the loss of {targets.numel()} tokens and {CLASSES} classes is {error:.1e} of its size "
                              f"off; rounding explains {allowed:.1e}")
    (gradient,), (exact_gradient,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, exact_x)
    of_tokens = targets.flatten() >= 0
    off = float(error_of_tokens(gradient.flatten(0, 1)[of_tokens], exact_gradient.flatten(0, 1)[of_tokens]).median())
    require(off <= 2 ** 4 * eps(torch.bfloat16), f"in {how} the gradient of the loss is {off:.1e} of its size off")


def _compare_losses_of_tokens(module: Any, x: Tensor, targets: Tensor) -> None:
    """Require that in float32 the losses of single tokens are exact: in a sum of many, errors of rounded scores cancel."""
    low, exact = in_both_precisions(module, torch.float32)
    tokens = (8 * x).float()
    with torch.no_grad():
        for t in range(10, 18):
            loss = low.cross_entropy(tokens[:1, t:t + 1], targets[:1, t:t + 1])
            scores = exact(tokens[:1, t:t + 1].double())[0]
            expected = float(F.cross_entropy(scores, targets[0, t:t + 1]))
            error = abs(float(loss) - expected) / max(1.0, expected, size_of(scores))
            require(error <= 2 ** 8 * eps(torch.float32), f"in float32 the loss of one token is {error:.1e} of its size off")


CLASSES = 1302
"""Many classes, whose uniform loss, log 1302, lies in the middle between two numbers of bfloat16."""
