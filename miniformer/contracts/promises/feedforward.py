"""Promises of a feed-forward: it treats each position by itself, and records losses that can be trained."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.case import TOLERANCE, Case, require, require_equal, seeded
from miniformer.contracts.kit.fixed_draws import fixed_draws
from miniformer.contracts.kit.module_runner import RANDOM_TRAINING, draws_in_training, set_mode
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.context import Context
from miniformer.kernel.layout import Layout


@contract("ffn")
def acts_on_each_position(case: Case) -> None:
    """A token's output depends on that token only.

    In training: what looks at other positions looks at later ones too, and the model learns to read its answer there.

    Seen: expert-choice routing (Zhou 2022, arXiv:2202.09368), in which experts pick tokens from the whole sequence.
    """
    module = case.component()
    fixed = set_mode(case, module, same_shapes=True)
    T = case.length(6)
    x, order, others = case.tensor(2, T, module.d_model), case.order(T), case.tensor(2, T, module.d_model)
    with torch.no_grad():
        out = _output(module, x, fixed)
        for t in case.indices("positions", T):
            other_text = others.clone()
            other_text[:, t] = x[:, t]
            require_equal(_output(module, other_text, fixed)[:, t], out[:, t], f"position {t} in another text")
        if fixed:  # at another place it draws other numbers
            module.eval()
            case.unseen.add(f"positions alone in {RANDOM_TRAINING}")
            out = module(x)
        require_equal(module(x[:, order]), out[:, order], f"{T} positions in another order")
        for t in case.indices("positions", T)[:3]:
            require_equal(module(x[:, t:t + 1]), out[:, t:t + 1], f"position {t} alone and beside others")


def _output(module: nn.Module, x: Tensor, fixed: bool) -> Tensor:
    with fixed_draws() if fixed else nullcontext():
        out: Tensor = module(x)
    return out


@contract("ffn")
def padding_changes_nothing(case: Case) -> None:
    """The outputs of real tokens, and recorded losses, do not depend on the content of padding.

    In training: a load-balance loss that counts padding trains experts to serve padding.

    Seen: transformers#28505: Mixtral's load-balancing loss counted padding.
    """
    module = case.component().train()
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES])
    x = case.tensor(*layout.shape, module.d_model)
    changed = torch.where(layout.real[..., None], x, x + 3)
    with torch.no_grad():
        context, changed_context = Context(layout), Context(layout)
        with fixed_draws():
            out = module(x, context)
        with fixed_draws():
            changed_out = module(changed, changed_context)
        require_equal(changed_out[layout.real], out[layout.real], "real tokens beside other padding")
        for record, changed_record in zip(context.records, changed_context.records, strict=True):
            require_equal(changed_record.value, record.value, f"recorded {record.name} beside other padding")


@contract("ffn")
def records_losses_that_train(case: Case) -> None:
    """A loss that it records in training is one finite number with a gradient, even for a batch of padding only.

    In training: the auxiliary loss is logged and trains nothing, or makes the whole loss NaN.
    """
    module = case.component().train()
    for layout in (drawing.whole(2, 5), drawing.whole(2, 5, padding=True)):
        context = Context(layout)
        module(case.tensor(2, 5, module.d_model), context)
        for record in context.records:
            if record.loss:
                require(record.value.ndim == 0, f"{record.name} has shape {list(record.value.shape)}; expected one number")
                require(bool(record.value.isfinite()), f"{record.name} is {float(record.value.detach())}")
                require(record.value.requires_grad, f"{record.name} has no gradient")


@contract("attention", "ffn", examples=0.5)
def recorded_losses_are_means(case: Case) -> None:
    """A loss that it records is a mean, whose size does not grow with the batch: a batch with each row twice records what the
    batch does, and so does the batch when it is given once more.

    In training: the weight of the auxiliary loss changes with the batch size, with gradient accumulation, or with time.
    """
    module = case.component().train()
    layout = case.layout(kinds=[drawing.FULL, drawing.LEFT, drawing.RIGHT], rows=3)
    x, causal = case.tensor(*layout.shape, module.d_model), bool(getattr(module, "causal_only", False))
    once = _mean_losses(module, x, layout, causal, passes=1)
    if not once:
        return
    passes = 8 if draws_in_training(case, module) else 1
    for name, loss in _mean_losses(module, x, layout, causal, passes=1).items():
        first = once.get(name, loss)
        same = abs(loss - first) <= TOLERANCE * max(1.0, abs(first))
        require(same, f"{name} is {first:.7g}, and {loss:.7g} when the batch is given once more")
    once = _mean_losses(module, x, layout, causal, passes)
    twice = _mean_losses(module, torch.cat([x, x]), layout.stack_rows(layout, layout.shape[1]), causal, passes)
    for name, loss in once.items():
        if name not in twice:
            raise Broken(f"{name} is recorded for a batch, and not for one twice as large")
        # a mixture whose experts have a capacity cuts the two batches at other tokens, so they need not agree to the last bit
        near = abs(twice[name] - loss) <= 0.25 * max(abs(loss), abs(twice[name])) + 1e-6
        require(near, f"{name} is {loss:.4g}, and {twice[name]:.4g} for the same batch given twice")


@torch.no_grad()
def _mean_losses(module: nn.Module, x: Tensor, layout: Layout, causal: bool, passes: int) -> dict[str, float]:
    """What a module records as losses by name, as means over passes that draw other numbers."""
    means: dict[str, float] = {}
    for seed in range(passes):
        context = Context(layout, causal)
        with seeded(seed):
            module(x, context)
        for record in context.records:
            if record.loss:
                means[record.name] = means.get(record.name, 0.0) + float(record.value.sum()) / passes
    return means
