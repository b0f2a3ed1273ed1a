"""The cross-entropy of a language model's head, without holding the scores of all tokens at once.

Loss and gradients both need the softmax of the scores. So forward computes the gradients together with the loss, a part of the
tokens at a time, and writes them over the scores (as Liger does, arXiv:2410.10989); backward only scales them.

Shapes: N tokens, D d_model, V classes; n, v a part of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear import product

TOKENS = 512
"""Tokens whose scores are held at once. With fewer, memory is saved, but the matrix's gradient is added to more often."""
CLASSES = 8192
"""Rows of the matrix in one product, so that the memory that a product needs beside its result is small."""
IN_CACHE = 1 << 20
"""Scores whose softmax is taken at once, so that its passes find them in the processor's cache."""


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The summed cross-entropy, in nats, of the scores x W^T and the classes `targets_N`; tokens with target -1 do not count.

    It is at least in float32. Gradients can be taken once, and have no derivative.
    """
    device = x_ND.device.type
    if torch.is_autocast_enabled(device):  # autocast does not reach into an autograd function
        dtype = torch.get_autocast_dtype(device)
        x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
    wants_gradients = torch.is_grad_enabled()  # inside the function it is always off
    loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, wants_gradients)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss sum_n -log softmax(x_n W^T)[target_n], and its gradients by x and W, made in one pass over the tokens."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, wants_gradients: bool) -> Tensor:
        wants_x, wants_weight = (wants_gradients and needed for needed in ctx.needs_input_grad[:2])
        # many parts add to the loss and to the matrix's gradient, so these sums are in float32 at least
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        loss = x_ND.new_zeros((), dtype=wide)
        grad_x_ND = torch.zeros_like(x_ND, dtype=wide) if wants_x else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        class_parts = [slice(v, v + CLASSES) for v in range(0, len(weight_VD), CLASSES)]

        for n in range(0, len(x_ND), TOKENS):
            token_part = slice(n, n + TOKENS)
            x_nD = x_ND[token_part]
            # 1) the scores of these tokens for all classes
            scores_nV = x_nD.new_empty(len(x_nD), len(weight_VD))
            for class_part in class_parts:
                scores_nV[:, class_part] = product(x_nD, weight_VD[class_part])
            # 2) their loss; where gradients are wanted, the scores become the loss's gradient by them
            _add_loss(loss, scores_nV, targets_N[token_part], wants_x or wants_weight)
            # 3) the gradients by what made the scores: dx = dscores W, dW = dscores^T x
            for class_part in class_parts:
                grad_scores_nv = scores_nV[:, class_part]
                if grad_x_ND is not None:
                    grad_x_ND[token_part] += product(grad_scores_nv, weight_VD[class_part].T)
                if grad_weight_VD is not None:
                    grad_weight_VD[class_part] += product(grad_scores_nv.T, x_nD.T)

        ctx.is_spent = False
        ctx.save_for_backward(None if grad_x_ND is None else grad_x_ND.to(x_ND.dtype),
                              None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or ctx.is_spent:
            raise RuntimeError("this loss gives its gradients once, and has no second derivative; for more, take the "
                               "cross-entropy of the head's scores, head(x)")
        ctx.is_spent = True  # the gradients are scaled in place, to need no memory of their own
        grad_x_ND, grad_weight_VD = (None if grad is None else grad.mul_(grad_loss) for grad in ctx.saved_tensors)
        return grad_x_ND, grad_weight_VD, None, None


def _add_loss(loss: Tensor, scores_nV: Tensor, targets_n: Tensor, wants_gradients: bool) -> None:
    """Add the loss of some tokens to `loss`; with `wants_gradients`, overwrite their scores with its gradient by them.

    The gradient by the scores of a token is softmax(scores) less 1 at its target.
    """
    at_once = max(1, IN_CACHE // scores_nV.shape[1]) if scores_nV.device.type == "cpu" else TOKENS
    blocks = zip(torch.split(scores_nV, at_once), torch.split(targets_n, at_once), strict=True)
    for block_scores_nV, block_targets_n in blocks:
        counts_n1 = (block_targets_n >= 0)[:, None]
        target_n1 = block_targets_n.clamp(min=0)[:, None]
        log_p_nV = torch.log_softmax(block_scores_nV, dim=-1, dtype=loss.dtype)
        loss -= torch.where(counts_n1, log_p_nV.gather(1, target_n1), 0).sum()
        if wants_gradients:
            p_nV = log_p_nV.exp_()
            gradient_nV = p_nV.scatter_add_(1, target_n1, -torch.ones_like(target_n1, dtype=loss.dtype))
            block_scores_nV.copy_(gradient_nV.masked_fill_(~counts_n1, 0))
