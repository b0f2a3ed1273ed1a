"""What a feed-forward promises: to work on each position by itself, and to record its losses properly."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from miniformer.kernel.context import Context

from . import drawing
from .case import Case, require, same
from .properties import contract


@contract("ffn")
def acts_on_each_position(case: Case) -> None:
    """A token's output hangs on that token alone.

    In training: what looks at other positions looks at later ones too, and the model learns to cheat.

    Seen: expert-choice routing (Zhou 2022, arXiv:2202.09368), in which experts pick tokens of the whole sequence.
    """
    module = case.component()
    x = case.tensor(2, 6, module.d_model)
    order = case.draw("order", st.permutations(range(6)))
    with torch.no_grad():
        out = module(x)
        same(module(x[:, order]), out[:, order], f"positions in order {order}")
        for t in range(6):
            same(module(x[:, t:t + 1]), out[:, t:t + 1], f"position {t} alone and beside others")


@contract("ffn")
def padding_changes_nothing(case: Case) -> None:
    """What real tokens give, and the losses that are recorded, do not hang on padding.

    In training: a balance loss that counts padding pushes experts to serve it.

    Seen: transformers#28505: Mixtral's load-balancing loss counted padding.
    """
    module = case.component().train()
    layout = case.layout(kinds=[drawing.LEFT, drawing.RIGHT, drawing.HOLES])
    x = case.tensor(*layout.shape, module.d_model)
    changed = torch.where(layout.real[..., None], x, x + 3)
    with torch.no_grad():
        if _random(module, x):
            module.eval()
        one, other = Context(layout), Context(layout)
        same(module(changed, other)[layout.real], module(x, one)[layout.real], "real tokens beside other padding")
        for first, second in zip(one.records, other.records, strict=True):
            same(second.value, first.value, f"recorded {first.name} beside other padding")


def _random(module: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether it draws random numbers in training, so that two runs differ by them."""
    state = torch.get_rng_state()
    module(x)
    drew = not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    return drew


@contract("ffn")
def records_losses_that_train(case: Case) -> None:
    """What it records as a loss is one finite number with a gradient, in training and for a batch without tokens.

    In training: the auxiliary loss is shown and does nothing, or makes the whole loss NaN.
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
