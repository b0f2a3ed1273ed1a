"""Attention on a CPU, a block of queries at a time: no block looks at keys that none of its queries may see.

Like FlashAttention (Dao 2022, arXiv:2205.14135) it keeps no weights for its backward, which computes them again.

Shapes: B batch, T query length, S key length, H heads, K key/value heads, E width of queries and keys, F of values, N = B H;
n queries of a block, m keys that they may see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.kernel.masks import Mask

from .torch_private import softmax_gradient

ROWS, ROWS_HALF = 64, 128
"""Queries of a block, in single and in half precision: as measured on CPUs with AVX512."""


def blockwise(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
              scale: float | None = None) -> Tensor:
    """softmax(q k^T scale + bias, where the mask allows) v: `[B, H, T, F]`; see `attention_kernels.eager`."""
    B, H, T, E = q_BHTE.shape
    if not q_BHTE.dtype == k_BKSE.dtype == v_BKSF.dtype and torch.is_autocast_enabled("cpu"):
        q_BHTE, k_BKSE, v_BKSF = (t.to(torch.get_autocast_dtype("cpu")) for t in (q_BHTE, k_BKSE, v_BKSF))
    group = H // k_BKSE.shape[1]
    k_BHSE, v_BHSF = ((t.repeat_interleave(group, dim=1) if group > 1 else t) for t in (k_BKSE, v_BKSF))
    q_NTE, k_NSE, v_NSF = (t.flatten(0, 1) for t in (q_BHTE, k_BHSE, v_BHSF))
    scale = E ** -0.5 if scale is None else scale
    # the operator costs more to call, so it is for graphs alone
    attend: Callable[..., Tensor] = _attend_operator if torch.compiler.is_compiling() else _Blockwise.apply
    return attend(q_NTE, k_NSE, v_NSF, bias, mask.allowed, mask.causal, H, scale).view(B, H, T, -1)


# --- forward and backward, which each go through the blocks

def _attend(q_NTE: Tensor, k_NSE: Tensor, v_NSF: Tensor, bias: Tensor | None, allowed: Tensor | None, causal: bool, H: int,
            scale: float) -> Tensor:
    out_NTF = v_NSF.new_empty(*q_NTE.shape[:2], v_NSF.shape[2])
    for rows, keys, added in _blocks(q_NTE, k_NSE, bias, allowed, causal):
        weights_Nnm = _weights(q_NTE[:, rows], k_NSE[:, keys], added, H, scale)
        out_NTF[:, rows] = torch.bmm(weights_Nnm, v_NSF[:, keys])
    return out_NTF


def _gradients(grad_NTF: Tensor, q_NTE: Tensor, k_NSE: Tensor, v_NSF: Tensor, bias: Tensor | None, allowed: Tensor | None,
               causal: bool, H: int, scale: float) -> list[Tensor]:
    """The gradients by queries, keys and values, and by the bias if there is one.

    With scores s = q k^T scale + bias, weights w = softmax(s) and out = w v (Dao 2022, appendix B.2):
    dv = w^T dout, dw = dout v^T, ds = the softmax's gradient, dq = ds k scale, dk = ds^T q scale, dbias = ds.
    """
    wide = torch.promote_types(q_NTE.dtype, torch.float32)  # several blocks add to dk and dv, so these are summed in float32
    dq_NTE = torch.empty_like(q_NTE)
    dk_NSE, dv_NSF = (torch.zeros_like(t, dtype=wide) for t in (k_NSE, v_NSF))
    dbias = None if bias is None else torch.zeros_like(bias)
    for rows, keys, added in _blocks(q_NTE, k_NSE, bias, allowed, causal):
        q_NnE, k_NmE, grad_NnF = q_NTE[:, rows], k_NSE[:, keys], grad_NTF[:, rows]
        weights_Nnm = _weights(q_NnE, k_NmE, added, H, scale)
        dv_NSF[:, keys] += torch.bmm(weights_Nnm.transpose(1, 2), grad_NnF)
        dweights_Nnm = torch.bmm(grad_NnF, v_NSF[:, keys].transpose(1, 2))
        dscores_Nnm = softmax_gradient(dweights_Nnm, weights_Nnm)
        if dbias is not None:
            dbias_here = dbias[..., rows, keys]
            dbias_here.copy_(_by_head(dscores_Nnm, H).sum_to_size(dbias_here.shape))
        dq_NTE[:, rows] = torch.bmm(dscores_Nnm, k_NmE).mul_(scale)
        dk_NSE[:, keys].add_(torch.bmm(dscores_Nnm.transpose(1, 2), q_NnE), alpha=scale)
    gradients = [dq_NTE, dk_NSE.to(k_NSE.dtype), dv_NSF.to(v_NSF.dtype)]
    return gradients if dbias is None else [*gradients, dbias]


# --- what autograd and graphs call

def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.H, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_NTF: Tensor, gradients: Callable[..., list[Tensor]] = _gradients) -> tuple[Tensor | None, ...]:
    # without this, a second derivative would take these gradients for constants; those of an operator raise by themselves
    if gradients is _gradients and torch.is_grad_enabled():
        raise RuntimeError("attention in blocks has no second derivative; for one, choose kernel 'eager'")
    dq_NTE, dk_NSE, dv_NSF, *dbias = gradients(grad_NTF, *ctx.saved_tensors, ctx.causal, ctx.H, ctx.scale)
    return dq_NTE, dk_NSE, dv_NSF, dbias[0] if dbias else None, None, None, None, None


class _Blockwise(torch.autograd.Function):
    forward = staticmethod(_attend)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


# Which keys a block looks at depends on the values of a mask, which a graph does not know when it is made. So a graph calls
# attention as one operator, and only the shapes of its results are known to it.

def _attend_shape(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(*q.shape[:2], v.shape[2])


def _gradient_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *_: Any) -> list[Tensor]:
    tensors = [q, k, v] if bias is None else [q, k, v, bias]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]


_attend_operator = torch.library.custom_op("miniformer::blockwise", _attend, mutates_args=())
_gradients_operator = torch.library.custom_op("miniformer::blockwise_gradients", _gradients, mutates_args=())
_attend_operator.register_fake(_attend_shape)
_gradients_operator.register_fake(_gradient_shapes)
_attend_operator.register_autograd(partial(_backward, gradients=_gradients_operator), setup_context=_save)


# --- blocks

class _Block(NamedTuple):
    """Some queries, the keys that any of them may see, and what is added to their scores.

    Attributes:
        rows, keys: the columns of both.
        added: `[B or 1, H or 1, n, m]`, the bias, and -inf where a query may not look; None: nothing.
    """

    rows: slice
    keys: slice
    added: Tensor | None


def _blocks(q_NTE: Tensor, k_NSE: Tensor, bias: Tensor | None, allowed: Tensor | None, causal: bool) -> Iterator[_Block]:
    """All queries, in blocks of as many as are fastest."""
    T, S, dtype = q_NTE.shape[1], k_NSE.shape[1], q_NTE.dtype
    size = ROWS_HALF if dtype.itemsize < 4 else ROWS
    for start in range(0, T, size):
        rows, keys = slice(start, min(start + size, T)), slice(0, S)
        added = None
        if causal:  # the last query of the block sees the keys up to itself
            keys = slice(0, rows.stop)
            later_nm = q_NTE.new_full((rows.stop - start, rows.stop), -math.inf).triu_(start + 1)
            added = later_nm[None, None]
        elif allowed is not None:
            allowed_here = allowed[:, :, rows]
            seen = allowed_here.flatten(0, 2).any(dim=0).nonzero()
            keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)
            added = torch.where(allowed_here[..., keys], 0.0, -math.inf).to(dtype)
        if bias is not None:
            bias_here = bias[..., rows, keys].to(dtype)
            added = bias_here if added is None else added + bias_here
        yield _Block(rows, keys, added)


def _weights(q_NnE: Tensor, k_NmE: Tensor, added: Tensor | None, H: int, scale: float) -> Tensor:
    """The weights `[N, n, m]` of a block; 0 in rows that may look at nothing."""
    if added is not None and added.shape[:2] == (1, 1):  # equal for all N, so the product adds it in passing
        scores_Nnm = torch.baddbmm(added[0, 0], q_NnE, k_NmE.transpose(1, 2), alpha=scale)
    else:
        # beta=0: the first argument is not read; it is there so that the product is scaled in passing
        scores_Nnm = torch.baddbmm(q_NnE.new_empty(()), q_NnE, k_NmE.transpose(1, 2), beta=0, alpha=scale)
        if added is not None:
            _by_head(scores_Nnm, H).add_(added)
    weights_Nnm = scores_Nnm.softmax(dim=-1)
    if added is not None:
        sees_nothing = added.amax(dim=-1, keepdim=True) == -math.inf
        if bool(sees_nothing.any()):  # the softmax of such a row is NaN
            _by_head(weights_Nnm, H).masked_fill_(sees_nothing, 0)
    return weights_Nnm


def _by_head(of_N: Tensor, H: int) -> Tensor:
    """`[N, n, m] -> [B, H, n, m]`, a view."""
    return of_N.view(-1, H, *of_N.shape[1:])
