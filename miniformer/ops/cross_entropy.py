"""Cross-entropy of a matrix's scores, which are never in memory all at once nor more than once.

Gradients are computed with the loss, since both need the softmax, and scores are overwritten by them (as in Liger,
arXiv:2410.10989); backward only scales them.

Shapes: N tokens, D d_model, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear import product

AT_ONCE = 512
"""Tokens scored at a time. Fewer save memory, but the gradient of the matrix is added to more often, once for each part."""
CLASSES = 8192
"""Rows of the matrix that take part in a product together, so that what a product needs beside its result is small."""
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
        dx_ND = torch.zeros_like(x_ND, dtype=wide) if for_x else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=wide) if for_weight else None
        total = x_ND.new_zeros((), dtype=wide)
        V = len(weight_VD)
        classes = [slice(v, v + CLASSES) for v in range(0, V, CLASSES)]
        in_cache = max(1, IN_CACHE // V) if x_ND.device.type == "cpu" else AT_ONCE
        for n in range(0, len(x_ND), AT_ONCE):
            x, targets = x_ND[n:n + AT_ONCE], targets_N[n:n + AT_ONCE]
            scores = x.new_empty(len(x), V)
            for some_V in classes:
                scores[:, some_V] = product(x, weight_VD[some_V])
            for some, wanted in zip(torch.split(scores, in_cache), torch.split(targets, in_cache), strict=True):
                asked_n1, target_n1 = (wanted >= 0)[:, None], wanted.clamp(min=0)[:, None]
                log_p_nV = torch.log_softmax(some, dim=-1, dtype=wide)
                total -= torch.where(asked_n1, log_p_nV.gather(1, target_n1), 0).sum()
                if for_x or for_weight:
                    by_scores = log_p_nV.exp_().scatter_add_(1, target_n1, -torch.ones_like(target_n1, dtype=wide))
                    some.copy_(by_scores.masked_fill_(~asked_n1, 0))
            for some_V in classes:
                if dx_ND is not None:
                    dx_ND[n:n + AT_ONCE] += product(scores[:, some_V], weight_VD[some_V].T)
                if dweight_VD is not None:
                    dweight_VD[some_V] += product(scores[:, some_V].T, x.T)
        ctx.spent = False
        ctx.save_for_backward(None if dx_ND is None else dx_ND.to(x_ND.dtype),
                              None if dweight_VD is None else dweight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or ctx.spent:
            raise RuntimeError("this loss gives its gradients once, and has no second derivative; for more, take the "
                               "cross-entropy of the head's scores, head(x)")
        ctx.spent = True
        dx_ND, dweight_VD = ctx.saved_tensors
        return *(None if d is None else d.mul_(grad) for d in (dx_ND, dweight_VD)), None, None
