"""Attention on a CPU, a block of queries at a time: no block looks at keys that none of its queries may see.

Like FlashAttention (Dao 2022, arXiv:2205.14135) it keeps no weights for its backward, which computes them again.

Shapes: B batch, T query length, S key length, H heads, K key/value heads, E width of queries and keys, F of values, N = B H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miniformer.kernel.masks import Mask

ROWS, ROWS_HALF = 64, 128
"""Queries of a block, in single and in half precision: as measured on CPUs with AVX512."""


def blockwise(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
              scale: float | None = None) -> Tensor:
    """softmax(q k^T scale + bias, where the mask allows) v: `[B, H, T, F]`; see `kernels.eager`."""
    B, H, T, E = q_BHTE.shape
    if not q_BHTE.dtype == k_BKSE.dtype == v_BKSF.dtype and torch.is_autocast_enabled("cpu"):
        q_BHTE, k_BKSE, v_BKSF = (t.to(torch.get_autocast_dtype("cpu")) for t in (q_BHTE, k_BKSE, v_BKSF))
    group = H // k_BKSE.shape[1]
    k_BHSE, v_BHSF = ((t.repeat_interleave(group, dim=1) if group > 1 else t) for t in (k_BKSE, v_BKSF))
    q_NTE, k_NSE, v_NSF = (t.flatten(0, 1) for t in (q_BHTE, k_BHSE, v_BHSF))
    asked = bias, mask.allowed, mask.causal, H, E ** -0.5 if scale is None else scale
    apply: Callable[..., Tensor] = _opaque if torch.compiler.is_compiling() else _Blockwise.apply
    return apply(q_NTE, k_NSE, v_NSF, *asked).view(B, H, T, -1)


def _attend(q_NTE: Tensor, k_NSE: Tensor, v_NSF: Tensor, bias: Tensor | None, allowed: Tensor | None, causal: bool, H: int,
            scale: float) -> Tensor:
    out_NTF = v_NSF.new_empty(*q_NTE.shape[:2], v_NSF.shape[2])
    for rows, keys, added in _blocks(q_NTE, k_NSE, bias, allowed, causal):
        weights = _weights(q_NTE[:, rows], k_NSE[:, keys], added, H, scale)
        out_NTF[:, rows] = torch.bmm(weights, v_NSF[:, keys])
    return out_NTF


def _gradients(grad_NTF: Tensor, q_NTE: Tensor, k_NSE: Tensor, v_NSF: Tensor, bias: Tensor | None, allowed: Tensor | None,
               causal: bool, H: int, scale: float) -> list[Tensor]:
    """Of queries, keys and values, and of the bias if there is one."""
    wide = torch.promote_types(q_NTE.dtype, torch.float32)  # what several blocks add to is summed in
    dq_NTE = torch.empty_like(q_NTE)
    dk_NSE, dv_NSF = (torch.zeros_like(t, dtype=wide) for t in (k_NSE, v_NSF))
    dbias = [] if bias is None else [torch.zeros_like(bias)]
    for rows, keys, added in _blocks(q_NTE, k_NSE, bias, allowed, causal):
        q, k, grad = q_NTE[:, rows], k_NSE[:, keys], grad_NTF[:, rows]
        weights = _weights(q, k, added, H, scale)
        dv_NSF[:, keys] += torch.bmm(weights.transpose(1, 2), grad)
        by_weights = torch.bmm(grad, v_NSF[:, keys].transpose(1, 2))
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        for into in dbias:
            into[..., rows, keys] = _by_head(by_scores, H).sum_to_size(into[..., rows, keys].shape)
        dq_NTE[:, rows] = torch.bmm(by_scores, k).mul_(scale)
        dk_NSE[:, keys].add_(torch.bmm(by_scores.transpose(1, 2), q), alpha=scale)
    return [dq_NTE, dk_NSE.to(k_NSE.dtype), dv_NSF.to(v_NSF.dtype), *dbias]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.H, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_NTF: Tensor, gradients: Callable[..., list[Tensor]] = _gradients) -> tuple[Tensor | None, ...]:
    if gradients is _gradients and torch.is_grad_enabled():  # an operator's gradients have no derivative by themselves
        raise RuntimeError("attention in blocks has no second derivative; for one, choose kernel 'eager'")
    dq_NTE, dk_NSE, dv_NSF, *dbias = gradients(grad_NTF, *ctx.saved_tensors, ctx.causal, ctx.H, ctx.scale)
    return dq_NTE, dk_NSE, dv_NSF, dbias[0] if dbias else None, None, None, None, None


class _Blockwise(torch.autograd.Function):
    forward = staticmethod(_attend)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


# what a compiled graph calls, since blocks hang on the values of a mask; by itself it costs more for each call
_opaque = torch.library.custom_op("miniformer::blockwise", _attend, mutates_args=())
_opaque_gradients = torch.library.custom_op("miniformer::blockwise_gradients", _gradients, mutates_args=())
_opaque.register_fake(lambda q, k, v, *_: v.new_empty(*q.shape[:2], v.shape[2]))
_opaque_gradients.register_fake(
    lambda grad, q, k, v, bias, *_: [torch.empty_like(t, memory_format=torch.contiguous_format)
                                     for t in (q, k, v, bias) if t is not None])
_opaque.register_autograd(partial(_backward, gradients=_opaque_gradients), setup_context=_save)


def _blocks(q_NTE: Tensor, k_NSE: Tensor, bias: Tensor | None, allowed: Tensor | None,
            causal: bool) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows of a block, columns of the keys that some of them may see, and what is added to their scores.

    That is `[B or 1, H or 1, n, m]`: the bias, and -inf where a query may not look.
    """
    T, S, dtype = q_NTE.shape[1], k_NSE.shape[1], q_NTE.dtype
    size = ROWS_HALF if dtype.itemsize < 4 else ROWS
    for start in range(0, T, size):
        rows, keys = slice(start, min(start + size, T)), slice(0, S)
        added = None
        if causal:
            keys = slice(0, rows.stop)
            later = q_NTE.new_full((rows.stop - start, rows.stop), -math.inf).triu_(start + 1)
            added = later[None, None]
        elif allowed is not None:
            here = allowed[:, :, rows]
            seen = here.flatten(0, 2).any(dim=0).nonzero()
            keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)
            added = torch.where(here[..., keys], 0.0, -math.inf).to(dtype)
        if bias is not None:
            own = bias[..., rows, keys].to(dtype)
            added = own if added is None else added + own
        yield rows, keys, added


def _weights(q: Tensor, k: Tensor, added: Tensor | None, H: int, scale: float) -> Tensor:
    """The weights `[N, n, m]` of a block; 0 in rows that may look at nothing."""
    if added is not None and added.shape[:2] == (1, 1):
        scores = torch.baddbmm(added[0, 0], q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        if added is not None:
            _by_head(scores, H).add_(added)
    weights = scores.softmax(dim=-1)
    if added is not None and bool((nothing := added.amax(dim=-1, keepdim=True) == -math.inf).any()):
        _by_head(weights, H).masked_fill_(nothing, 0)
    return weights


def _by_head(of_N: Tensor, H: int) -> Tensor:
    """`[N, n, m] -> [B, H, n, m]`, a view."""
    return of_N.view(-1, H, *of_N.shape[1:])
