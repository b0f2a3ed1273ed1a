"""Cross-entropy of a matrix's scores, which are never in memory all at once nor more than once.

Gradients are computed with the loss, since both need the softmax, and scores are overwritten by them (as in Liger,
arXiv:2410.10989); backward only scales them.

Shapes: N tokens, D d_model, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .products import product

AT_ONCE = 1 << 26
"""Scores in memory at most; more than one such part costs a sum over the matrix's gradient each."""
IN_CACHE = 1 << 20
"""Scores whose softmax is taken at once, so that its passes find them in a processor's cache."""


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The summed cross-entropy, in nats and at least in float32, of scores x W^T and classes; -1: none is asked for."""
    device = x_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
    total: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, grad: bool) -> Tensor:
        for_x, for_weight = (grad and needed for needed in ctx.needs_input_grad[:2])
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        dx_ND = torch.empty_like(x_ND) if for_x else None
        dweight_VD: Tensor | None = None
        total = x_ND.new_zeros((), dtype=wide)
        V = len(weight_VD)
        at_once, in_cache = max(1, AT_ONCE // V), max(1, (IN_CACHE if x_ND.device.type == "cpu" else AT_ONCE) // V)
        parts = (torch.split(t, at_once) for t in (x_ND, targets_N, x_ND if dx_ND is None else dx_ND))
        for x, targets, into in zip(*parts, strict=True):
            scores = product(x, weight_VD)
            for some, wanted in zip(torch.split(scores, in_cache), torch.split(targets, in_cache), strict=True):
                asked_n1, target_n1 = (wanted >= 0)[:, None], wanted.clamp(min=0)[:, None]
                log_p_nV = torch.log_softmax(some, dim=-1, dtype=wide)
                total -= (log_p_nV.gather(1, target_n1) * asked_n1).sum()
                if for_x or for_weight:
                    by_scores = log_p_nV.exp_().scatter_add_(1, target_n1, -torch.ones_like(target_n1, dtype=wide))
                    torch.mul(by_scores, asked_n1, out=by_scores)
                    some.copy_(by_scores)
            if dx_ND is not None:
                into.copy_(product(scores, weight_VD.T))
            if for_weight:
                part = product(scores.T, x.T)
                dweight_VD = part if dweight_VD is None else dweight_VD.add_(part)
        ctx.save_for_backward(dx_ND, dweight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx_ND, dweight_VD = ctx.saved_tensors
        # in place: a second backward is refused by autograd, which sees that they changed
        return *(None if d is None else d.mul_(grad) for d in (dx_ND, dweight_VD)), None, None
