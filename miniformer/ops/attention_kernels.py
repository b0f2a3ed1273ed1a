"""Attention kernels: softmax(q k^T scale + bias, where the mask allows) v, one pure function each, and what each can do.

All take the same arguments and give 0 in rows that may look at nothing; `eager` does everything and is the oracle of the
tests. An attention says what it needs and is given a kernel when it is built.

Shapes: B batch, T query length, S key length, H heads, K key/value heads, E width of queries and keys, F of values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.errors import RunError
from miniformer.kernel.masks import Mask

from .blockwise import blockwise

Ability = Literal["dropout", "softcap", "sinks", "bias gradient"]
KernelName = Literal["auto", "fused", "blockwise", "sdpa", "eager", "flex"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """A kernel's function with what it can do beyond the least: any mask, a bias, shared key/value heads.

    Attributes:
        name: what options call it.
        compute: the function, of `q_BHTE, k_BKSE, v_BKSF, mask, bias` and the keyword arguments of `eager`.
        abilities: what it can do.
        trains_on: the types of device on which it has a backward; None: on all.
    """

    name: str
    compute: Callable[..., Tensor]
    abilities: frozenset[Ability]
    trains_on: frozenset[str] | None = None


def eager(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
          scale: float | None = None, dropout: float = 0.0, softcap: float | None = None,
          sinks: Tensor | None = None) -> Tensor:
    """The formula as it stands, all scores in memory: `[B, H, T, F]`.

    Args:
        q_BHTE, k_BKSE, v_BKSF: queries, keys and values; consecutive groups of heads share a key/value head.
        mask: who may look at whom.
        bias: `[B or 1, H, T, S]`, added to the scores.
        scale: factor of the scores; None: 1 / sqrt(E).
        dropout: on the weights.
        softcap: bounds scores to (-softcap, softcap) by a tanh, before the bias (Gemma 2, arXiv:2408.00118).
        sinks: `[H]`, the logit of a key for each head that has no value (gpt-oss, arXiv:2508.10925).
    """
    weights_BHTS = weights(q_BHTE, k_BKSE, mask, bias, scale=scale, softcap=softcap, sinks=sinks)
    v_BHSF = v_BKSF.repeat_interleave(q_BHTE.shape[1] // v_BKSF.shape[1], dim=1)
    return F.dropout(weights_BHTS, dropout).to(v_BHSF.dtype) @ v_BHSF


def weights(q_BHTE: Tensor, k_BKSE: Tensor, mask: Mask, bias: Tensor | None = None, *, scale: float | None = None,
            softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """The weights `[B, H, T, S]` of `eager`, whose arguments these are; a row sums to 1, what a sink takes left out."""
    k_BHSE = k_BKSE.repeat_interleave(q_BHTE.shape[1] // k_BKSE.shape[1], dim=1)
    scores_BHTS = q_BHTE @ k_BHSE.transpose(-1, -2) * (q_BHTE.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias.to(scores_BHTS.dtype)
    if (allowed := _allowed(mask, scores_BHTS)) is not None:
        scores_BHTS = scores_BHTS.masked_fill(~allowed, -math.inf)
    if sinks is not None:
        sinks_BHT1 = sinks.to(scores_BHTS.dtype)[:, None, None].expand(*scores_BHTS.shape[:-1], 1)
        scores_BHTS = torch.cat([scores_BHTS, sinks_BHT1], dim=-1)
    weights_BHTS = scores_BHTS.softmax(dim=-1)[..., :k_BHSE.shape[2]]
    if allowed is not None:  # a row that may look at nothing is NaN until here
        weights_BHTS = weights_BHTS.masked_fill(~allowed, 0)
    return weights_BHTS


def sdpa(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
         scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """torch's fused kernels, FlashAttention among them (Dao 2023, arXiv:2307.08691)."""
    causal, attend = mask.causal and bias is None, mask.allowed
    if bias is not None:
        allowed, bias = _allowed(mask, q_BHTE), bias.to(q_BHTE.dtype)
        attend = bias if allowed is None else bias.masked_fill(~allowed, -math.inf)
    width = v_BKSF.shape[-1]
    if width < q_BHTE.shape[-1]:  # the fused kernels take one width only
        v_BKSF = F.pad(v_BKSF, (0, q_BHTE.shape[-1] - width))
    out = F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSF, attn_mask=attend, is_causal=causal, dropout_p=dropout,
                                         scale=scale, enable_gqa=bool(k_BKSE.shape[1] != q_BHTE.shape[1]))
    return out[..., :width]


def fused(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
          scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """`blockwise` on a CPU, for as many queries as make it faster than torch's own kernels there; `eager` for one query in a
    compiled graph, where it is made one with what stands beside it, and under `torch.func`; else `sdpa`."""
    if q_BHTE.shape[2] == 1 and q_BHTE.device.type == "cpu" and torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return eager(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale)
    few = 64 if q_BHTE.dtype.itemsize >= 4 else 8
    if q_BHTE.device.type == "cpu" and q_BHTE.shape[2] > few and not dropout:
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return eager(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale)
        return blockwise(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale)
    return sdpa(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale, dropout=dropout)


def flex(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
         scale: float | None = None, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """torch's FlexAttention, which skips blocks that are masked out (Dong 2024, arXiv:2412.05496). No backward on a CPU.

    Raises:
        RunError: gradients are wanted on a CPU.
    """
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    B, H, T, _ = q_BHTE.shape
    device, S = q_BHTE.device, k_BKSE.shape[2]
    if device.type == "cpu" and torch.is_grad_enabled() and any(t.requires_grad for t in (q_BHTE, k_BKSE, v_BKSF)):
        raise RunError("kernel 'flex' has no backward on a CPU; train on a GPU, or with kernel 'auto'")
    blocks, allowed = None, mask.allowed
    if allowed is not None:
        blocks = create_block_mask(lambda b, h, t, s: allowed[b, 0, t, s], B, None, T, S, device=device)
    elif mask.causal:
        blocks = create_block_mask(lambda b, h, t, s: t >= s, None, None, T, S, device=device)
    rows = None if bias is None else bias.expand(B, -1, -1, -1)

    def score(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        return score if rows is None else score + rows[b, h, t, s]

    plain = softcap is None and bias is None
    out, extra = _flex_attention(device.type)(
        q_BHTE, k_BKSE, v_BKSF, score_mod=None if plain else score, block_mask=blocks, scale=scale,
        enable_gqa=k_BKSE.shape[1] != H, return_aux=AuxRequest(lse=sinks is not None))
    if sinks is not None:  # the share of the weight that the keys have beside the sink
        out = out * torch.sigmoid(extra.lse - sinks[:, None])[..., None].to(out.dtype)
    return out


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    """Compiled, except on a CPU, where compiling takes longer than it saves."""
    import warnings

    from torch.nn.attention.flex_attention import flex_attention

    if device != "cpu":
        return torch.compile(flex_attention)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    return flex_attention


def _allowed(mask: Mask, like: Tensor) -> Tensor | None:
    """`mask` as a tensor that broadcasts to `[B, H, T, S]`; None: everything."""
    T = like.shape[2]
    return torch.ones(T, T, dtype=torch.bool, device=like.device).tril() if mask.causal else mask.allowed


KERNELS = {kernel.name: kernel for kernel in (  # the fastest first
    Kernel("fused", fused, frozenset({"dropout", "bias gradient"})),
    Kernel("blockwise", blockwise, frozenset({"bias gradient"})),
    Kernel("sdpa", sdpa, frozenset({"dropout", "bias gradient"})),
    Kernel("eager", eager, frozenset({"dropout", "bias gradient", "softcap", "sinks"})),
    Kernel("flex", flex, frozenset({"softcap", "sinks"}), trains_on=frozenset({"cuda"})),
)}


def choose(name: KernelName, **needs: Any) -> Kernel:
    """The kernel of that name; with `auto`, the first that does what is needed and trains everywhere.

    Args:
        name: `auto` or a kernel's name.
        needs: abilities and the option that asks for them; 0, None and False ask for nothing.

    Raises:
        ValueError: the named kernel cannot do what is needed.
    """
    needed = [ability for ability, option in needs.items() if option]
    fastest = next(iter(KERNELS.values()))
    if name != "auto":
        if lacks := [need for need in needed if need not in KERNELS[name].abilities]:
            able = [kernel.name for kernel in KERNELS.values() if kernel.abilities.issuperset(needed)]
            raise ValueError(f"kernel {name!r} cannot do {' and '.join(lacks)}; {' and '.join(able)} can")
        return KERNELS[name]
    chosen = next(kernel for kernel in KERNELS.values() if kernel.trains_on is None and kernel.abilities.issuperset(needed))
    if chosen is not fastest:
        _say(f"attention kernel {chosen.name!r} instead of the faster {fastest.name!r}, which cannot do "
             f"{' and '.join(need for need in needed if need not in fastest.abilities)}")
    return chosen


@cache
def _say(line: str) -> None:
    """Log a line once."""
    logger.warning(line)
