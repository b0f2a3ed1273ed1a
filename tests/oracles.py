"""What the code is compared with: formulas written out as loops, in float64."""

import cmath
import math

import torch
from torch import Tensor

Place = tuple[int, int]


def may_attend(query: Place, key: Place, *, causal: bool = False, window: int | None = None) -> bool:
    """The mask rules for a query and a key given as (position, document)."""
    (i, document_i), (j, document_j) = query, key
    return document_i == document_j and not (causal and j > i) and (window is None or abs(i - j) < window)


def allowed(queries, keys, **rules) -> list[list[list[bool]]]:
    """`may_attend` for every pair of tokens of two layouts: [B][T][S]."""
    return [[[may_attend(q, k, **rules) for k in k_row] for q in q_row]
            for q_row, k_row in zip(places(queries), places(keys))]


def places(layout) -> list[list[Place]]:
    """(position, document) of every token of a layout."""
    return [list(zip(p, d)) for p, d in zip(layout.positions.tolist(), layout.documents.tolist())]


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: list[list[list[bool]]], bias: Tensor | None = None, *,
              scale: float | None = None, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
    """Softmax attention, one query at a time: q [B, H, T, E], k [B, K, S, E], v [B, K, S, F]; zero where nothing is allowed."""
    B, H, T, E = q.shape
    out = q.new_zeros(B, H, T, v.shape[-1])
    scale = 1 / math.sqrt(E) if scale is None else scale

    def capped(score: float) -> float:
        return score if softcap is None else softcap * math.tanh(score / softcap)

    for b in range(B):
        for h in range(H):
            kv = h * k.shape[1] // H  # heads share keys and values in consecutive groups
            for t in range(T):
                seen = [s for s in range(k.shape[2]) if allowed[b][t][s]]
                scores = [capped(float(q[b, h, t] @ k[b, kv, s]) * scale)
                          + (0.0 if bias is None else float(bias[b % bias.shape[0], h, t, s])) for s in seen]
                weights = [math.exp(score) for score in scores]
                total = sum(weights) + (0.0 if sinks is None else math.exp(float(sinks[h])))
                for s, weight in zip(seen, weights):
                    out[b, h, t] += weight / total * v[b, kv, s]
    return out


def rotary(x: Tensor, position: int, base: float = 10_000.0) -> Tensor:
    """One head [E] of a query or key, its pairs (i, i + E/2) turned as complex numbers."""
    half = len(x) // 2
    turned = [complex(x[i], x[i + half]) * cmath.exp(1j * position * base ** (-i / half)) for i in range(half)]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=x.dtype)
