"""Attentions that treat a bias, mixed batches or long rows wrongly, and position encodings; correct ones beside them."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from miniformer.kernel import Window

from .attention import Plain, Remembering, order, together
from .position import PlainBias, PlainRotary


class ScalesTheBiasToo(Plain):
    """The bias is divided by sqrt(E), as the scores are."""

    caught_by = "a-bias-of-log-2-counts-twice"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2)
        return (scores if context.bias is None else scores + context.bias.to(scores.dtype)) * self.d_head ** -0.5


class BoundsTheBias(Plain):
    """A tanh after the bias bounds both."""

    caught_by = "a-bias-of-log-2-counts-twice"

    def scores(self, q, k, context):
        return 2 * torch.tanh(super().scores(q, k, context) / 2)


class AddsTheBiasToTheWeights(Plain):
    """Adds the bias after the softmax."""

    caught_by = "a-bias-of-log-2-counts-twice"

    def weights(self, q, k, context):
        weights = (q @ k.transpose(-1, -2) * self.d_head ** -0.5).masked_fill(~self.allowed(context), -torch.inf).softmax(-1)
        return weights if context.bias is None else weights + context.bias.to(weights.dtype)


class ChangesTheBias:
    """A mixin: `changed` changes the bias `[B or 1, H, T, S]`."""

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + self.changed(context.bias).to(scores.dtype)


class TheFirstHeadsBiasForAll(ChangesTheBias, Plain):
    """Takes the bias of head 0 for every head."""

    caught_by = "each-head-has-its-bias"

    def changed(self, bias):
        return bias[:, :1]


class TheMeanBiasForAll(ChangesTheBias, Plain):
    """Takes the mean over the heads."""

    caught_by = "each-head-has-its-bias"

    def changed(self, bias):
        return bias.mean(dim=1, keepdim=True)


class TheFirstRowsBiasForAll(ChangesTheBias, Plain):
    """Takes the bias of row 0 for every row of the batch."""

    caught_by = "a-bias-counts"

    def changed(self, bias):
        return bias[:1]


class BiasOfTheWrongColumns(ChangesTheBias, Plain):
    """With a state, the bias of the newest column is that of the oldest."""

    caught_by = "steps-give-the-whole"

    def changed(self, bias):
        return bias.roll(1, dims=-1) if bias.shape[-1] > bias.shape[-2] else bias


class DetachesTheBias(ChangesTheBias, Plain):
    """A kernel without a gradient for the bias, although it says `trains_bias`."""

    caught_by = "a-bias-gets-its-gradient"

    def changed(self, bias):
        return bias.detach()


class Gated(Remembering):
    """Correct: the difference of two softmaxes (Ye 2024, arXiv:2410.05258), a norm of each head, and a gate from the input."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.gate, self.q2 = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, x, context, state=None):
        q, q2 = (context.rotate(self.heads(layer(x)), "q") for layer in (self.q, self.q2))
        if context.memory is not None and state is not None:
            k, v = state.k, state.v
        else:
            source = x if context.memory is None else context.memory.hidden
            k, v = self.heads(self.k(source)), self.heads(self.v(source))
            k = context.rotate(k, "k") if context.memory is None else k
            k, v = (k, v) if state is None else state.append(k, v)
        mixed = (self.weights(q, k, context) - 0.8 * self.weights(q2, k, context)) @ v
        mixed = mixed * (mixed.square().mean(dim=-1, keepdim=True) + 1e-3).rsqrt()
        return self.out(mixed.transpose(1, 2).flatten(2) * self.gate(x).sigmoid())


class Sigmoids(Plain):
    """Correct: each weight is a sigmoid of its own, so they do not sum to one (Ramapuram 2024, arXiv:2409.04431)."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)

    def weights(self, q, k, context):
        return self.scores(q, k, context).sigmoid() * self.allowed(context)


class Forgets(Plain):
    """Correct: a gate that each token sets lowers the scores of what came before it (Lin 2025, arXiv:2503.02130)."""

    causal_only: ClassVar[bool] = True
    cross: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.forget = nn.Linear(d_model, n_heads)

    def forward(self, x, context, state=None):
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        real = context.layout.real[:, :, None].to(x.dtype)
        gates = (F.logsigmoid(3 * self.forget(x)) * real).transpose(1, 2)
        sums = gates.to(torch.promote_types(x.dtype, torch.float32)).cumsum(dim=-1)  # their differences need all digits
        decay = (sums[..., :, None] - sums[..., None, :]).to(x.dtype)
        scores = self.scores(context.rotate(q, "q"), context.rotate(k, "k"), context) + decay
        scores = scores.masked_fill(~self.allowed(context), -torch.inf)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    def init_state(self, batch, capacity):
        return super(Plain, self).init_state(batch, capacity)


class DoesNotScale(Plain):
    """Leaves out the factor 1 / sqrt(E), with torch's usual initial weights."""

    caught_by = "starts-spread-out"

    def scores(self, q, k, context):
        return super().scores(q, k, context) * self.d_head ** 0.5


class Convolves(Plain):
    """Correct: a short causal convolution over the columns of keys and values, within a document."""

    causal_only: ClassVar[bool] = True
    cross: ClassVar[bool] = False
    applies: ClassVar[frozenset[str]] = frozenset({"bias"})

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)

    def forward(self, x, context, state=None):
        layout, mixed = context.layout, x
        for back in (1, 2):
            if back < x.shape[1]:
                before = (order(context)[:, 0] == -back) & together(context)[:, 0] & layout.real[:, None]
                mixed = mixed + before.to(x.dtype) @ x / (1 + back)
        q, k, v = self.heads(self.q(x)), self.heads(self.k(mixed)), self.heads(self.v(mixed))
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))

    def init_state(self, batch, capacity):
        return super(Plain, self).init_state(batch, capacity)


class MixesDocumentsOfMixedBatches(Plain):
    """Takes every row for one text if the first is."""

    caught_by = "documents-do-not-mix"

    def allowed(self, context):
        documents = context.layout.documents
        if context.memory is not None or context.keys is not None or int(documents[0].max()) > 1 or not documents[0].all():
            return super().allowed(context)
        queries, keys = (documents > 0)[:, None, :, None], (documents > 0)[:, None, None]
        return (queries == keys) & ((order(context) <= 0) if context.causal else torch.ones_like(queries & keys))


class HearsPaddingOfMixedBatches(Plain):
    """Leaves padding in where the first row has none and there are rows of two kinds."""

    caught_by = "padding-is-not-heard"

    def allowed(self, context):
        layout, allowed = context.layout, super().allowed(context)
        if context.memory is not None or context.keys is not None or not layout.packed or not layout.real[0].all():
            return allowed
        padded = layout.real.all(dim=1)[:, None, None, None].logical_not()
        return allowed | (padded & (layout.documents.amax(dim=1) == 1)[:, None, None, None]
                          & (order(context) <= 0 if context.causal else True))


class LongWindowOffByOne(Plain):
    """Its window of 128 is one position shorter than it says."""

    caught_by = "hears-what-it-may"

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.rule = Window(128)

    def allowed(self, context):
        allowed = super().allowed(context)
        return allowed if context.memory is not None else allowed & (order(context).abs() < 127)


class DropsItsLastBlock(Plain):
    """Long rows are cut into whole blocks of 32; what is left over is not computed."""

    caught_by = "hears-what-it-may"

    def forward(self, x, context, state=None):
        out, T = super().forward(x, context, state), x.shape[1]
        if T <= 32 or state is not None:
            return out
        return F.pad(out[:, :T - T % 32], (0, 0, 0, T % 32))


class DetachesItsTail(Plain):
    """Keys and values of blocks before a token's own get no gradient in rows of more than 64."""

    caught_by = "long-rows-have-their-gradients"

    def forward(self, x, context, state=None):
        if x.shape[1] <= 64 or context.memory is not None or state is not None:
            return super().forward(x, context, state)
        out = super().forward(x, context)
        whole = x.shape[1] - 1 - (x.shape[1] - 1) % 32
        return torch.cat([out[:, :whole], out[:, whole:].detach()], dim=1)


class PaddingIndex(PlainBias):
    """A table of vectors whose first row gets no gradient."""

    caught_by = "learns-at-each-place"
    extrapolates = False
    relative = False
    bias = PlainRotary.bias

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.table = nn.Embedding(max_seq_len, d_model, padding_idx=0)

    def embed(self, x, positions):
        return x + self.table(positions)


class Waves(PlainBias):
    """Correct: sines of learned frequencies, which have no gradient at position 0."""

    relative = False
    bias = PlainRotary.bias
    known_violations: ClassVar = {"far-places-survive-low-precision": "in bfloat16 its frequencies are rounded"}

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.frequencies = nn.Parameter(torch.linspace(0.1, 1.0, d_model))

    def embed(self, x, positions):
        angles = positions[..., None] * self.frequencies.to(torch.promote_types(x.dtype, torch.float32))
        return x + torch.sin(angles).to(x.dtype)


class DetachesTheFirstPlace(Waves):
    """The first token's embedding is replaced by a copy without a gradient."""

    caught_by = "learns-at-each-place"

    def embed(self, x, positions):
        return super().embed(torch.where((positions == 0)[..., None], x.detach(), x), positions)


class EndsAtItsLastRow(PlainBias):
    """Beyond `max_seq_len` every position is the last one."""

    caught_by = "ends-as-declared"

    def bias(self, q_positions, k_positions):
        return super().bias(q_positions.clamp(max=self.max_seq_len - 1), k_positions.clamp(max=self.max_seq_len - 1))


class BeginsAnew(PlainRotary):
    """Beyond `max_seq_len` positions begin again."""

    caught_by = "ends-as-declared"

    def precompute(self, positions):
        return super().precompute(positions % self.max_seq_len)


class StretchesByTheLongestRow(PlainRotary):
    """Turns more slowly if any row of the batch is longer than `max_seq_len`."""

    caught_by = "ends-as-declared"

    def angles(self, positions):
        return super().angles(positions) / (positions.max() / self.max_seq_len).clamp(min=1)


class CausalBiasOfItsOwn(PlainBias):
    """Correct: in a causal model later keys have whatever a table holds there, since no token sees them."""

    def causal_bias(self, q_positions, k_positions):
        later = q_positions[:, None, :, None] < k_positions[:, None, None]
        return torch.where(later, k_positions[:, None, None].double() + q_positions.max(),
                           self.bias(q_positions, k_positions))
