"""Unusual designs that are correct: attentions. The kit must accuse none of them."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from miniformer.kernel import Attention, State, StateError
from miniformer.kernel.layout import latest

from .attention import Cache, Plain


class Mixing(Plain):
    """What `Plain` computes, with a method that sees all that is mixed."""

    def forward(self, x, context, state=None):
        source = x if context.memory is None else context.memory.hidden
        q, k, v = context.rotate(self.heads(self.q(x)), "q"), self.heads(self.k(source)), self.heads(self.v(source))
        if context.memory is None:
            k = context.rotate(k, "k")
            if state is not None:
                k, v = state.append(k, v)
        return self.out(self.mixed(x, q, k, v, context).transpose(1, 2).flatten(2))

    def mixed(self, x, q, k, v, context):
        return self.weights(q, k, context) @ v


class OnlineSoftmax(Mixing):
    """Goes over the keys in chunks of 16 with a running maximum and a running sum (Milakov 2018, arXiv:1805.02867)."""

    def mixed(self, x, q, k, v, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        best = torch.full_like(scores[..., :1], torch.finfo(scores.dtype).min)
        total, out = torch.zeros_like(best), 0
        for start in range(0, k.shape[2], 16):
            chunk = scores[..., start:start + 16]
            better = torch.maximum(best, chunk.detach().amax(dim=-1, keepdim=True))
            weights, shrink = (chunk - better).exp(), (best - better).exp()
            total = total * shrink + weights.sum(dim=-1, keepdim=True)
            values = v[:, :, start:start + 16].to(weights.dtype)
            out = out * shrink + F.dropout(weights, self.dropout, self.training) @ values
            best = better
        return (out / total).to(v.dtype)


class GatedOutput(Mixing):
    """Each head's output is multiplied by a sigmoid of the token (Qiu 2025, arXiv:2505.06708)."""

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.gate = nn.Linear(d_model, d_model)

    def mixed(self, x, q, k, v, context):
        return super().mixed(x, q, k, v, context) * self.heads(self.gate(x)).sigmoid()


class ValueResidual(Mixing):
    """A token's own value is added to what it hears, as much as is learnt."""

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.own = nn.Parameter(torch.full((n_heads, 1, 1), 0.5))

    def mixed(self, x, q, k, v, context):
        return super().mixed(x, q, k, v, context) + self.own * self.heads(self.v(x))


class Differential(Plain):
    """Of two heads, each takes a part of the other's weights from its own (after Ye 2024, arXiv:2410.05258)."""

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        if n_heads % 2:
            raise ValueError(f"{n_heads} heads are not pairs")
        self.part = nn.Parameter(torch.full((n_heads, 1, 1), -1.0))

    def weights(self, q, k, context):
        weights = super().weights(q, k, context)
        return weights - self.part.sigmoid() * weights.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)


class SigmoidAttention(Plain):
    """Each weight is a sigmoid, so they need not sum to one (Ramapuram 2024, arXiv:2409.04431)."""

    def weights(self, q, k, context):
        allowed = self.allowed(context)
        scores = self.scores(q, k, context)
        weights = (scores - allowed.sum(dim=-1, keepdim=True).to(scores.dtype).log()).sigmoid() * allowed
        return F.dropout(weights, self.dropout, self.training)


class SoftmaxOffByOne(Plain):
    """A learnt score for hearing nothing is part of the softmax, so weights sum to less than one."""

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.sink = nn.Parameter(torch.zeros(n_heads, 1, 1))

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        sink = self.sink.to(scores.dtype).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
        return F.dropout(weights, self.dropout, self.training)


class ThreeTensors(Cache):
    """A cache that also keeps keys as they were before the convolution."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.raw = torch.zeros_like(self.k)

    @property
    def nbytes(self):
        return super().nbytes + self.raw.nbytes

    def look(self, raw):
        end = self.columns + raw.shape[2]
        if end > self.raw.shape[2]:
            raise StateError("it is full")
        self.raw[:, :, self.columns:end] = raw
        return self.raw[:, :, :end]

    def reorder(self, index):
        super().reorder(index)
        self.raw = self.raw[index]

    def join(self, other, columns, capacity):
        held = [latest(one.raw[:, :, :one.columns], 2, columns) for one in (self, other)]
        super().join(other, columns, capacity)
        self.raw = F.pad(torch.cat(held), (0, 0, 0, capacity - columns))

    def as_static(self, column, columns):
        raise StateError("it looks for the key before")


class ConvolvedKeys(Plain):
    """A key is a mixture of the token's own and that of the token before it in its document, wherever that stands."""

    cross = False
    remembers = ThreeTensors

    def __init__(self, d_model: int, n_heads: int, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__(d_model, n_heads, dropout=dropout)
        self.before = nn.Parameter(torch.full((n_heads, 1, 1), 0.5))

    def forward(self, x, context, state=None):
        q, raw, v = context.rotate(self.heads(self.q(x)), "q"), self.heads(self.k(x)), self.heads(self.v(x))
        queries, keys = context.layout, context.keys or context.layout
        together = (queries.documents[:, :, None] == keys.documents[:, None]) & queries.real[:, :, None]
        next_to = queries.positions[:, :, None] - keys.positions[:, None] == 1
        before = (together & next_to)[:, None].to(raw.dtype) @ (raw if state is None else state.look(raw))
        k = context.rotate(raw + self.before * before, "k")
        k, v = (k, v) if state is None else state.append(k, v)
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))


class Associations(State):
    """What a row's document has written so far, `[B, H, E, E]`."""

    truncates = False
    joins = True
    grows = True

    def __init__(self, batch, heads, width, dtype):
        self.written, self.document = torch.zeros(batch, heads, width, width, dtype=dtype), torch.zeros(batch, dtype=torch.long)
        self.columns = 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return self.written.nbytes + self.document.nbytes

    def reorder(self, index):
        self.written, self.document = self.written[index], self.document[index]

    def truncate(self, length):
        if length < self.columns:
            raise StateError("what is written cannot be taken back")

    def grow(self, capacity):
        pass

    def join(self, other, columns, capacity):
        self.written = torch.cat([self.written, other.written])
        self.document = torch.cat([self.document, other.document])
        self.columns = columns


class DeltaRule(Attention):
    """Writes the difference between a value and what its key finds, and forgets at a learnt rate (Yang 2024, 2412.06464)."""

    kind: ClassVar[str] = "attention"
    causal_only: ClassVar[bool] = True
    applies: ClassVar[frozenset[str]] = frozenset()
    masked: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.width = d_model // n_heads
        self.qkv, self.rates = nn.Linear(d_model, 3 * n_heads * self.width), nn.Linear(d_model, 2 * n_heads)
        self.out = nn.Linear(n_heads * self.width, d_model)

    def forward(self, x, context, state=None):
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = self.qkv(x).to(wide).unflatten(-1, (3, self.n_heads, self.width)).unbind(dim=2)
        writes, keeps = self.rates(x).to(wide).unflatten(-1, (2, self.n_heads, 1, 1)).unbind(dim=2)
        k, writes, keeps = F.normalize(k, dim=-1), writes.sigmoid(), (keeps + 3).sigmoid()
        held = Associations(len(x), self.n_heads, self.width, wide) if state is None else state
        written, document, read = held.written.to(x.device), held.document.to(x.device), []
        for t in range(x.shape[1]):
            now = context.layout.documents[:, t]
            real, goes_on = (now > 0)[:, None, None, None], (now == document)[:, None, None, None]
            kept = keeps[:, t] * written * goes_on
            key, value = k[:, t, :, :, None], v[:, t, :, None]
            after = kept + writes[:, t] * key * (value - key.transpose(-1, -2) @ kept)
            written, document = torch.where(real, after, written), torch.where(now > 0, now, document)
            read.append((q[:, t, :, None] @ after * real)[:, :, 0])
        if state is not None:
            state.written, state.document = written, document
            state.columns += x.shape[1]
        return self.out(torch.stack(read, dim=1).flatten(2).to(self.out.weight.dtype))

    def init_state(self, batch, capacity):
        dtype = torch.promote_types(self.qkv.weight.dtype, torch.float32)
        return Associations(batch, self.n_heads, self.width, dtype)
