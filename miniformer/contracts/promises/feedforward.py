"""Promises of a feed-forward: it treats each position by itself, and records losses that can be trained."""

from __future__ import annotations

import torch

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.case import Case, require, require_equal
from miniformer.contracts.kit.module_runner import draws_in_training, set_mode
from miniformer.contracts.kit.properties import contract
from miniformer.kernel.context import Context


@contract("ffn")
def acts_on_each_position(case: Case) -> None:
    """A token's output depends on that token only.

    In training: what looks at other positions looks at later ones too, and the model learns to read its answer there.

    Seen: expert-choice routing (Zhou 2022, arXiv:2202.09368), in which experts pick tokens from the whole sequence.
    """
    module = case.component()
    set_mode(case, module)
    T = case.length(6)
    x, order = case.tensor(2, T, module.d_model), case.order(T)
    with torch.no_grad():
        out = module(x)
        require_equal(module(x[:, order]), out[:, order], f"{T} positions in another order")
        for t in case.indices("positions", T):
            require_equal(module(x[:, t:t + 1]), out[:, t:t + 1], f"position {t} alone and beside others")


@contract("ffn")
def padding_changes_nothing(case: Case) -> None:
    """The outputs of real tokens, and recorded losses, do not depend on the content of padding.

    In training: a load-balance loss that counts padding trains experts to serve padding.

    Seen: transformers#28505: Mixtral's load-balancing loss counted padding.
    """
    module = case.component()
    if draws_in_training(case, module):
        module.eval()
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES])
    x = case.tensor(*layout.shape, module.d_model)
    changed = torch.where(layout.real[..., None], x, x + 3)
    with torch.no_grad():
        context, changed_context = Context(layout), Context(layout)
        out, changed_out = module(x, context), module(changed, changed_context)
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
