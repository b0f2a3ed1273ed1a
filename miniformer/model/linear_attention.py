"""Linear attention: sums over tokens instead of scores between them, so that time is linear and its state constant.

Shapes: B batch, T tokens, H heads, E head width, F width of what is summed (E for values, 1 for weights), C chunk.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.kernel.context import Context
from miniformer.kernel.errors import StateError
from miniformer.kernel.interfaces import Attention
from miniformer.kernel.state import State
from miniformer.ops.room import empty_room

from .init import RESIDUAL, linear

CHUNK = 64
"""Tokens whose scores among each other are held at once; earlier tokens are in the sums."""


class LinearAttention(Attention):
    """Attention with weights phi(q) . phi(k), phi(x) = elu(x) + 1, as running sums (Katharopoulos 2020, arXiv:2006.16236).

    It reads documents and padding from the layout and has no mask. Each document is one run of columns, padding aside.
    A position encoding rotates phi(q) and phi(k) where they weigh values and not in the sum of weights, which could
    otherwise be 0 (Su 2021, arXiv:2104.09864, section 3.3). There are no scores to add a bias to.

    Args:
        d_model: D.
        n_heads: H, a divisor of D.
        bias: biases in the projections.
    """

    applies: ClassVar[frozenset[str]] = frozenset({"rotate"})
    masked: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int, *, bias: bool = False) -> None:
        super().__init__(d_model, n_heads)
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        self.d_head = d_model // n_heads
        self.qkv = linear(d_model, 3 * d_model, bias)
        self.out = linear(d_model, d_model, bias, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        B, T, D = x.shape
        sums: Any = state  # a `LinearState`, which `init_state` made
        qkv_3BHTE = self.qkv(x).view(B, T, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
        with _without_autocast(x.device.type):  # sums over many tokens need float32
            q_BHTE, k_BHTE, v_BHTE = qkv_3BHTE.to(_wide(x.dtype))
            out_BHTE = self._mixed(q_BHTE, k_BHTE, v_BHTE, context, sums)
        return self.out(out_BHTE.to(qkv_3BHTE.dtype).transpose(1, 2).reshape(B, T, D))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: LinearState | None) -> Tensor:
        """Weighted means of `v` `[B, H, T, E]`."""
        q, k = F.elu(q) + 1, F.elu(k) + 1
        k = k.masked_fill(~context.layout.real[:, None, :, None], 0)
        summed = [(context.rotate(q, "q"), context.rotate(k, "k"), v), (q, k, torch.ones_like(v[..., :1]))]
        packed = (context.keys or context.layout).packed
        if not context.causal and not packed:
            values, weights = (q @ (k.transpose(-1, -2) @ v) for q, k, v in summed)
        else:
            before = LinearState(q.new_zeros(*q.shape[:2], self.d_head, self.d_head + 1)) if state is None else state
            documents_BT = _filled(context.layout.documents, before.document)
            starts = before.sums.to(q.device, q.dtype).tensor_split((self.d_head,), dim=-1)
            (values, sum_values), (weights, sum_weights) = (
                cumulative(q, k, v, documents_BT, start, before.document) for (q, k, v), start in zip(summed, starts))
            if state is not None:
                state.advance(torch.cat([sum_values, sum_weights], dim=-1), documents_BT)
            if not context.causal:  # state is None, and the sums begin with zeros
                values, weights = (
                    so_far + cumulative(q.flip(2), k.flip(2), v.flip(2), documents_BT.flip(1), start, before.document,
                                        inclusive=False)[0].flip(2)
                    for so_far, (q, k, v), start in zip((values, weights), summed, starts))
        # features vanish for large negative numbers; the root leaves room for what the gradient multiplies 1 / weight with
        return values / weights.clamp(min=torch.finfo(weights.dtype).tiny ** 0.5)

    def init_state(self, batch: int, capacity: int) -> LinearState:
        room = empty_room(self.qkv, batch, self.n_heads, self.d_head, self.d_head + 1)
        return LinearState(torch.zeros_like(room, dtype=_wide(room.dtype)))


def cumulative(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTF: Tensor, documents_BT: Tensor, sums_BHEF: Tensor, document_B: Tensor, *,
               inclusive: bool = True) -> tuple[Tensor, Tensor]:
    """Sums of (q_t . k_s) v_s over the tokens s of t's document up to t, chunk by chunk.

    Args:
        q_BHTE, k_BHTE, v_BHTF: features and what they weigh.
        documents_BT: the document of each token, in runs.
        sums_BHEF, document_B: sums of k v^T over the earlier tokens, and the document that these belong to.
        inclusive: token t counts for itself.

    Returns:
        The sums `[B, H, T, F]`, and those of k v^T over the last document so far, `[B, H, E, F]`.
    """
    out = []
    for start in range(0, documents_BT.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        q_BHCE, k_BHCE, v_BHCF = q_BHTE[:, :, chunk], k_BHTE[:, :, chunk], v_BHTF[:, :, chunk]
        documents_BC = documents_BT[:, chunk]
        together_BCC = (documents_BC[:, :, None] == documents_BC[:, None, :]).tril(0 if inclusive else -1)
        continues_BC = documents_BC == document_B[:, None]
        scores_BHCC = q_BHCE @ k_BHCE.transpose(-1, -2) * together_BCC[:, None]
        out.append(scores_BHCC @ v_BHCF + q_BHCE @ sums_BHEF * continues_BC[:, None, :, None])
        last_B = documents_BC[:, -1]
        of_last_BHCE = k_BHCE * (documents_BC == last_B[:, None])[:, None, :, None]
        sums_BHEF = sums_BHEF * (document_B == last_B)[:, None, None, None] + of_last_BHCE.transpose(-1, -2) @ v_BHCF
        document_B = last_B
    return torch.cat(out, dim=2), sums_BHEF


def _filled(documents_BT: Tensor, before_B: Tensor) -> Tensor:
    """The document of each token, where padding belongs to the document before it, so that padding ends no document."""
    columns = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    latest_BT = torch.where(documents_BT != 0, columns, -1).cummax(dim=1).values
    return torch.where(latest_BT < 0, before_B[:, None], documents_BT.gather(1, latest_BT.clamp(min=0)))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class LinearState(State):
    """Sums over the document that each row is in: `[B, H, E, E + 1]`, of any number of tokens."""

    truncates: ClassVar[bool] = False
    joins: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def __init__(self, sums_BHEF: Tensor) -> None:
        self.sums = sums_BHEF
        self.document = torch.zeros(sums_BHEF.shape[0], dtype=torch.long, device=sums_BHEF.device)
        self._length = 0

    def advance(self, sums_BHEF: Tensor, documents_BT: Tensor) -> None:
        """Take over the sums after T more tokens."""
        self.sums, self.document = sums_BHEF, documents_BT[:, -1].clone()  # a view would keep all columns alive
        self._length += documents_BT.shape[1]

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes + self.document.nbytes

    def reorder(self, index: Tensor) -> None:
        self.sums, self.document = self.sums[index], self.document[index]

    def truncate(self, length: int) -> None:
        if length < self._length:
            raise StateError(f"sums cannot go back from {self._length} tokens to {length}; start again with an empty state")

    def grow(self, capacity: int) -> None:
        """Sums have room for any number of tokens."""

    def join(self, other: Self, columns: int, capacity: int) -> None:
        self.sums, self.document = torch.cat([self.sums, other.sums]), torch.cat([self.document, other.document])
        self._length = columns
