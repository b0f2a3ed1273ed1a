"""Attention kernels: pure functions of softmax(q k^T scale + bias, where the mask allows) v, and what each of them can do.

All take the same arguments and give 0 in rows that may look at nothing. `eager` can do everything and is the oracle of the
tests. An attention is given a kernel when it is built, by what its options need (`choose`). With the switch at plain torch
(`ops/switch.py`), `fused` and `blockwise` are `sdpa`: torch's own public function, which takes all that these two take, dropout
and bias gradients among it, and holds as little memory as they do, where `eager` would hold all scores.

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
from .switch import is_plain, is_plain_in_graph, log_path
from .torch_private import functorch_is_active

Ability = Literal["dropout", "softcap", "sinks", "bias gradient"]
KernelName = Literal["auto", "fused", "blockwise", "sdpa", "eager", "flex"]

FEW_QUERIES, FEW_QUERIES_HALF = 64, 8
"""Up to so many queries, in single and in half precision, `sdpa` is faster on a CPU than `blockwise`: as measured."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """A kernel's function, and what it can do beyond what all can: any mask, a bias, shared key/value heads.

    Attributes:
        name: its name in options.
        compute: the function, of `q_BHTE, k_BKSE, v_BKSF, mask, bias` and those keyword arguments of `eager` that it can do.
        abilities: the further things that it can do.
        trains_on: the types of device on which it has a backward; None: all.
    """

    name: str
    compute: Callable[..., Tensor]
    abilities: frozenset[Ability]
    trains_on: frozenset[str] | None = None


def eager(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
          scale: float | None = None, dropout: float = 0.0, softcap: float | None = None,
          sinks: Tensor | None = None) -> Tensor:
    """The formula step by step, all scores in memory: `[B, H, T, F]`.

    Args:
        q_BHTE, k_BKSE, v_BKSF: queries, keys and values; consecutive groups of heads share a key/value head.
        mask: who may look at whom.
        bias: `[B or 1, H, T, S]`, added to the scores.
        scale: factor of the scores; None: 1 / sqrt(E).
        dropout: the part of the weights that is set to 0.
        softcap: bounds scores to (-softcap, softcap) by a tanh, before the bias (Gemma 2, arXiv:2408.00118).
        sinks: `[H]`, for each head the score of one more key, whose value is 0 (gpt-oss, arXiv:2508.10925).
    """
    weights_BHTS = weights(q_BHTE, k_BKSE, mask, bias, scale=scale, softcap=softcap, sinks=sinks)
    v_BHSF = v_BKSF.repeat_interleave(q_BHTE.shape[1] // v_BKSF.shape[1], dim=1)
    return F.dropout(weights_BHTS, dropout).to(v_BHSF.dtype) @ v_BHSF


def weights(q_BHTE: Tensor, k_BKSE: Tensor, mask: Mask, bias: Tensor | None = None, *, scale: float | None = None,
            softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """The weights `[B, H, T, S]` that `eager` gives the values, from the arguments of `eager`.

    A row sums to 1, or to less by the share of its sink.
    """
    k_BHSE = k_BKSE.repeat_interleave(q_BHTE.shape[1] // k_BKSE.shape[1], dim=1)
    scale = q_BHTE.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTS = q_BHTE @ k_BHSE.transpose(-1, -2) * scale
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
    if allowed is not None:  # the softmax of a row that may look at nothing is NaN
        weights_BHTS = weights_BHTS.masked_fill(~allowed, 0)
    return weights_BHTS


def sdpa(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
         scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """torch's fused kernels, FlashAttention among them (Dao 2023, arXiv:2307.08691)."""
    is_causal, attn_mask = mask.causal, mask.allowed
    if bias is not None:  # torch takes one tensor, so the bias carries the mask as -inf
        allowed, bias = _allowed(mask, q_BHTE), bias.to(q_BHTE.dtype)
        attn_mask = bias if allowed is None else bias.masked_fill(~allowed, -math.inf)
        is_causal = False
    width = v_BKSF.shape[-1]
    if width < q_BHTE.shape[-1]:  # the fused kernels take values only of the keys' width
        v_BKSF = F.pad(v_BKSF, (0, q_BHTE.shape[-1] - width))
    shares_heads = bool(k_BKSE.shape[1] != q_BHTE.shape[1])
    out = F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSF, attn_mask=attn_mask, is_causal=is_causal, dropout_p=dropout,
                                         scale=scale, enable_gqa=shares_heads)
    return out[..., :width]


def fused(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
          scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """The fastest of `sdpa`, `blockwise` and `eager` for these queries; see `_fastest_for`."""
    compute = _fastest_for(q_BHTE, dropout)
    if not torch.compiler.is_compiling():
        log_path("attention", compute.__name__)
    if dropout:
        return compute(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale, dropout=dropout)
    return compute(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale)


def _fastest_for(q_BHTE: Tensor, dropout: float) -> Callable[..., Tensor]:
    """The function that is fastest for queries `[B, H, T, E]`, each case with its reason beside it."""
    if q_BHTE.device.type != "cpu":
        return sdpa  # torch's kernels there are the fastest
    n_queries, is_compiling = q_BHTE.shape[2], torch.compiler.is_compiling()
    if is_plain_in_graph() if is_compiling else is_plain():
        return sdpa
    if n_queries == 1 and is_compiling and not torch.is_grad_enabled():
        return eager  # inductor makes one kernel of the formula and of what stands beside it
    few = FEW_QUERIES if q_BHTE.dtype.itemsize >= 4 else FEW_QUERIES_HALF
    if n_queries <= few or dropout:
        return sdpa  # blocks cost more than they save, or would have to draw dropout alike in backward
    if not is_compiling and functorch_is_active():
        return eager  # `torch.func` can not see through an autograd function of ours
    return blockwise


def _blockwise_unless_plain(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
                            scale: float | None = None) -> Tensor:
    """`blockwise` on any device and for any number of queries, for who names it."""
    plain = is_plain_in_graph() if torch.compiler.is_compiling() else is_plain()
    return (sdpa if plain else blockwise)(q_BHTE, k_BKSE, v_BKSF, mask, bias, scale=scale)


def flex(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSF: Tensor, mask: Mask, bias: Tensor | None = None, *,
         scale: float | None = None, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """torch's FlexAttention, which skips blocks of keys that are masked out (Dong 2024, arXiv:2412.05496).

    Raises:
        RunError: gradients are wanted on a CPU, where it has no backward.
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
    bias_BHTS = None if bias is None else bias.expand(B, -1, -1, -1)

    def changed_score(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        return score if bias_BHTS is None else score + bias_BHTS[b, h, t, s]

    out, extra = _flex_attention(device.type)(
        q_BHTE, k_BKSE, v_BKSF, score_mod=None if softcap is None and bias is None else changed_score, block_mask=blocks,
        scale=scale, enable_gqa=k_BKSE.shape[1] != H, return_aux=AuxRequest(lse=sinks is not None))
    if sinks is not None:  # the keys share exp(lse) of exp(lse) + exp(sink): a sigmoid of the difference
        out = out * torch.sigmoid(extra.lse - sinks[:, None])[..., None].to(out.dtype)
    return out


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    """FlexAttention for a type of device: compiled, except on a CPU, where compiling takes longer than it saves."""
    import warnings

    from torch.nn.attention.flex_attention import flex_attention

    if device != "cpu":
        return torch.compile(flex_attention)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    return flex_attention


def _allowed(mask: Mask, like: Tensor) -> Tensor | None:
    """`mask` as a tensor that broadcasts to `[B, H, T, S]`; None: everything is allowed.

    `like` has T as its third dimension; a causal mask has as many keys as queries.
    """
    if not mask.causal:
        return mask.allowed
    T = like.shape[2]
    return torch.ones(T, T, dtype=torch.bool, device=like.device).tril()


KERNELS = {kernel.name: kernel for kernel in (  # the fastest first
    Kernel("fused", fused, frozenset({"dropout", "bias gradient"})),
    Kernel("blockwise", _blockwise_unless_plain, frozenset({"bias gradient"})),
    Kernel("sdpa", sdpa, frozenset({"dropout", "bias gradient"})),
    Kernel("eager", eager, frozenset({"dropout", "bias gradient", "softcap", "sinks"})),
    Kernel("flex", flex, frozenset({"softcap", "sinks"}), trains_on=frozenset({"cuda"})),
)}


def choose(name: KernelName, **needs: Any) -> Kernel:
    """The kernel of a name; for `auto`, the fastest that can do what is needed and trains everywhere.

    Args:
        name: `auto` or a kernel's name.
        needs: abilities and the option that asks for them; 0, None and False ask for nothing.

    Raises:
        ValueError: the named kernel cannot do what is needed.
    """
    needed = [ability for ability, option in needs.items() if option]
    able = [kernel for kernel in KERNELS.values() if kernel.abilities.issuperset(needed)]
    if name != "auto":
        if missing := [need for need in needed if need not in KERNELS[name].abilities]:
            names = " and ".join(kernel.name for kernel in able)
            raise ValueError(f"kernel {name!r} cannot do {' and '.join(missing)}; {names} can")
        return KERNELS[name]
    fastest = next(iter(KERNELS.values()))
    chosen = next(kernel for kernel in able if kernel.trains_on is None)
    if chosen is not fastest:
        missing = [need for need in needed if need not in fastest.abilities]
        _warn_once(f"attention kernel {chosen.name!r} instead of the faster {fastest.name!r}, which cannot do "
                   f"{' and '.join(missing)}")
    return chosen


@cache
def _warn_once(line: str) -> None:
    logger.warning(line)
