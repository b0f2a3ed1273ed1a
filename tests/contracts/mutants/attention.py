"""Attentions: `Plain` is correct, every other class has one fault unless its docstring says otherwise."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from miniformer.kernel import Attention, State, StateError, Window
from miniformer.kernel.layout import latest
from miniformer.ops.attention_kernels import KernelName


class Cache(State):
    """Keys and values `[B, H, C, E]` of the columns so far."""

    def __init__(self, batch, heads, capacity, width, dtype):
        self.k, self.v = torch.zeros(2, batch, heads, capacity, width, dtype=dtype)
        self.k, self.v = self.k.clone(), self.v.clone()
        self.columns = 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return self.k.nbytes + self.v.nbytes

    def append(self, k, v):
        start, self.columns = self.columns, self.columns + k.shape[2]
        if self.columns > self.k.shape[2]:
            self.columns = start
            raise StateError("it is full")
        self.k[:, :, start:self.columns], self.v[:, :, start:self.columns] = k, v
        return self.k[:, :, :self.columns], self.v[:, :, :self.columns]

    def reorder(self, index):
        self.k, self.v = self.k[index], self.v[index]

    def truncate(self, length):
        self.columns = min(self.columns, length)

    def as_static(self, column, columns):
        return Still(self.k[:, :, :columns], self.v[:, :, :columns], column)

    def advance_static(self):
        self.columns += 1

    joins = True

    def join(self, other, columns, capacity):
        for name in ("k", "v"):
            held = [latest(getattr(one, name)[:, :, :one.columns], 2, columns) for one in (self, other)]
            setattr(self, name, F.pad(torch.cat(held), (0, 0, 0, capacity - columns)))
        self.columns = columns


class Still(Cache):
    """A `Cache` in a compiled step."""

    def __init__(self, k, v, column):
        self.k, self.v, self.column = k, v, column

    def append(self, k, v):
        return self.k.index_copy_(2, self.column, k), self.v.index_copy_(2, self.column, v)


class Plain(Attention):
    """Correct multi-head attention."""

    kind: ClassVar[str] = "attention"
    cross: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, *, window: Annotated[int | None, Field(ge=1)] = None,
                 dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__(d_model, n_heads)
        self.d_head, self.dropout = d_model // n_heads, dropout
        self.rule = None if window is None else Window(window)
        self.q, self.k, self.v, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def heads(self, x):
        return x.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)

    def forward(self, x, context, state=None):
        source = x if context.memory is None else context.memory.hidden
        q, k, v = context.rotate(self.heads(self.q(x)), "q"), self.heads(self.k(source)), self.heads(self.v(source))
        if context.memory is None:
            k = context.rotate(k, "k")
            if state is not None:
                k, v = state.append(k, v)
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))

    def weights(self, q, k, context):
        scores = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf)
        return F.dropout(scores.softmax(dim=-1), self.dropout, self.training)

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + context.bias.to(scores.dtype)

    def allowed(self, context):
        """[B, 1, T, S], True where a query may see a key."""
        keys = context.keys or context.layout
        mask = context.mask(self.rule)
        if mask.allowed is not None:
            return mask.allowed
        T, S = context.layout.shape[1], keys.shape[1]
        device = keys.documents.device
        return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T) if mask.causal else torch.ones(
            T, S, dtype=torch.bool, device=device)

    remembers: ClassVar[type[Cache]] = Cache

    def init_state(self, batch, capacity):
        return self.remembers(batch, self.n_heads, capacity, self.d_head, self.k.weight.dtype)


def together(context):
    """[B, 1, T, S], whether query and key are of one document, padding aside."""
    queries, keys = context.layout.documents[:, :, None], (context.keys or context.layout).documents[:, None]
    return (queries == keys)[:, None]


def order(context):
    """[B, 1, T, S], how much later the key is than the query."""
    queries, keys = context.layout.positions[:, :, None], (context.keys or context.layout).positions[:, None]
    return (keys - queries)[:, None]


class ForgetsToMaskTheFuture(Plain):
    """Documents are kept apart, and the future is not masked."""

    caught_by = "no-look-ahead"

    def allowed(self, context):
        return together(context)


class LooksOneAhead(Plain):
    """The triangle starts one column too late."""

    caught_by = "no-look-ahead"

    def allowed(self, context):
        return together(context) & (order(context) <= 1) if context.causal else super().allowed(context)


class CentresOverTheSequence(Plain):
    """Takes the mean over all tokens from its input, later ones included: a leak that no mask stops."""

    caught_by = "no-look-ahead"

    def forward(self, x, context, state=None):
        return super().forward(x - x.mean(dim=1, keepdim=True), context, state)


class ForgetsTheMaskInTraining(Plain):
    """A fast path for training ignores the mask; evaluation is correct."""

    caught_by = "no-look-ahead"

    def allowed(self, context):
        return torch.ones_like(super().allowed(context)) if self.training else super().allowed(context)


class MasksLongRowsByBlocks(Plain):
    """From 17 columns on, a token sees the rest of its block of 16."""

    caught_by = "no-look-ahead"

    def allowed(self, context):
        if not context.causal or (T := context.layout.shape[1]) <= 16:
            return super().allowed(context)
        block = torch.arange(T) // 16
        return together(context) & (block[:, None] >= block)


class MixesDocumentsOfLongRows(Plain):
    """Long rows take another path, which masks padding and the future only."""

    caught_by = "documents-do-not-mix"

    def allowed(self, context):
        long = context.layout.shape[1] > 16 and context.memory is None
        return MixesDocuments.allowed(self, context) if long else super().allowed(context)


class AddsTheMask(Plain):
    """Adds a boolean mask to the scores, where it counts as 0 and 1."""

    caught_by = "no-look-ahead"

    def weights(self, q, k, context):
        return (self.scores(q, k, context) + self.allowed(context)).softmax(dim=-1)


class MixesDocuments(Plain):
    """Masks padding and the future by column, and takes a packed row for one text."""

    caught_by = "documents-do-not-mix"

    def allowed(self, context):
        keys = context.keys or context.layout
        columns = torch.arange(keys.shape[1])
        real = (keys.real[:, None] | ~context.layout.real[:, :, None])[:, None]
        past = columns[-context.layout.shape[1]:, None] >= columns
        return real & past if context.causal else real & torch.ones_like(past)


class HearsPadding(Plain):
    """Leaves padding in."""

    caught_by = "padding-is-not-heard"

    def allowed(self, context):
        if context.layout.packed or context.memory is not None:
            return super().allowed(context)
        return order(context) <= (0 if context.causal else 10_000)


class WindowOffByOne(Plain):
    """Its window is one position shorter than it says."""

    caught_by = "hears-what-it-may"

    def allowed(self, context):
        allowed = super().allowed(context)
        return allowed if self.rule is None else allowed & (order(context).abs() < max(1, self.rule.size - 1))


class OnlyLooksBack(Plain):
    """Masks the future in encoders too."""

    caught_by = "hears-what-it-may"

    def allowed(self, context):
        allowed = super().allowed(context)
        return allowed if context.memory is not None else allowed & (order(context) <= 0)


class TurnsTheMaskRound(Plain):
    """Reads True in a mask as hidden, as another library does."""

    caught_by = "hears-what-it-may"

    def weights(self, q, k, context):
        allowed = self.allowed(context)
        return self.scores(q, k, context).masked_fill(allowed & ~allowed.all(), -1e9).softmax(dim=-1)


class DoesNotScale(Plain):
    """Leaves out the factor 1 / sqrt(E)."""

    caught_by = "starts-spread-out"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        for layer in (self.q, self.k):
            nn.init.normal_(layer.weight, std=d_model ** -0.5)

    def scores(self, q, k, context):
        return super().scores(q, k, context) * self.d_head ** 0.5


class DoesNotRotateKeys(Plain):
    """Rotates queries only."""

    caught_by = "queries-and-keys-are-rotated"

    def forward(self, x, context, state=None):
        if context.memory is not None or context.signal is None:
            return super().forward(x, context, state)
        q, k, v = context.rotate(self.heads(self.q(x)), "q"), self.heads(self.k(x)), self.heads(self.v(x))
        k, v = (k, v) if state is None else state.append(k, v)
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))


class RotatesBeforeItSplitsHeads(Plain):
    """Hands all heads to the rotation as one wide one."""

    caught_by = "queries-and-keys-are-rotated"

    def heads(self, x):
        return x[:, None] if not hasattr(self, "late") else super().heads(x)

    def forward(self, x, context, state=None):
        q, k = context.rotate(self.q(x)[:, None], "q")[:, 0], context.rotate(self.k(x)[:, None], "k")[:, 0]
        q, k, v = (Plain.heads(self, y) for y in (q, k, self.v(x)))
        k, v = (k, v) if state is None else state.append(k, v)
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))


class IgnoresTheBiasInTraining(Plain):
    """The kernel that it trains with takes no bias."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        return IgnoresTheBias.scores(self, q, k, context) if self.training else super().scores(q, k, context)


class IgnoresTheBias(Plain):
    """Declares that it applies a bias, and does not."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        return q @ k.transpose(-1, -2) * self.d_head ** -0.5


class CountsColumns(Plain):
    """Turns queries and keys itself, by the column in this call instead of the position."""

    caught_by = "steps-give-the-whole"

    def heads(self, x):
        heads = super().heads(x)
        angles = torch.arange(heads.shape[2], dtype=heads.dtype)[:, None] * 0.7
        a, b = heads.chunk(2, dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


class LastChunk(Cache):
    def append(self, k, v):
        super().append(k, v)
        self.k[:, :, :self.columns] = F.pad(k, (0, 0, self.columns - k.shape[2], 0))
        return self.k[:, :, :self.columns], self.v[:, :, :self.columns]


class RemembersTheLastChunk(Plain):
    """Keys of earlier chunks are overwritten."""

    caught_by = "steps-give-the-whole"

    remembers = LastChunk


class SaysItNeedsNoState(Plain):
    """Returns no state, although it looks at earlier tokens."""

    caught_by = "steps-give-the-whole"

    def init_state(self, batch, capacity):
        return None


class Stubborn(Cache):
    def reorder(self, index):
        pass


class IgnoresReorder(Plain):
    """Reordering its state does nothing."""

    caught_by = "reordered-rows-go-on"

    remembers = Stubborn


class HalfReordered(Cache):
    def reorder(self, index):
        self.k, self.v = self.k[index], self.v[:1].expand_as(self.v)[index] if len(index) > len(self.v) else self.v[:len(index)]


class ReordersKeysOnly(Plain):
    """Keys are reordered, values stay."""

    caught_by = "reordered-rows-go-on"

    remembers = HalfReordered


class KeepsOneMore(Cache):
    def truncate(self, length):
        self.columns = min(self.columns, length + 1)


class TruncatesOffByOne(Plain):
    """A cut state keeps a column too many."""

    caught_by = "cut-states-go-on"

    remembers = KeepsOneMore


class JoinsAtTheFront(Cache):
    def join(self, other, columns, capacity):
        for name in ("k", "v"):
            held = [getattr(one, name)[:, :, :one.columns] for one in (self, other)]
            setattr(self, name, torch.cat([F.pad(part, (0, 0, 0, capacity - part.shape[2])) for part in held]))
        self.columns = columns


class JoinsShorterRowsAtTheFront(Plain):
    """The columns of joining rows are put at the start instead of the end."""

    caught_by = "joined-rows-go-on"

    remembers = JoinsAtTheFront


class Restless(Still):
    def append(self, k, v):
        self.k, self.v = self.k.index_copy(2, self.column, k), self.v.index_copy(2, self.column, v)
        return self.k, self.v


class Renewing(Cache):
    def as_static(self, column, columns):
        return Restless(self.k[:, :, :columns], self.v[:, :, :columns], column)


class MakesNewTensorsInCompiledSteps(Plain):
    """A static state replaces its tensors by new ones, which a compiled graph does not see."""

    caught_by = "static-steps-go-on"

    remembers = Renewing


class Uncounting(Cache):
    def advance_static(self):
        pass


class DoesNotCountCompiledSteps(Plain):
    """After static steps, columns are overwritten."""

    caught_by = "static-steps-go-on"

    remembers = Uncounting


class Silent(Cache):
    truncates = False

    def truncate(self, length):
        pass


class Ring(Cache):
    def append(self, k, v):
        k, v = super().append(k, v)
        old = torch.arange(self.columns)[:, None] < self.columns - 100
        return k.masked_fill(old, 0), v.masked_fill(old, 0)


class ForgetsTheStartOfLongTexts(Plain):
    """Its state is a ring of a hundred columns, whatever the window."""

    caught_by = "long-texts-go-on"

    remembers = Ring


class CannotGoBackAndSaysNothing(Plain):
    """A state that cannot be cut, and does not refuse to be."""

    caught_by = "cut-states-go-on"

    remembers = Silent


class HangsItsStateOnTheModule(Plain):
    """One cache for all sequences, on the module."""

    caught_by = "states-are-separate"

    def init_state(self, batch, capacity):
        self.cache = super().init_state(batch, capacity)
        return super().init_state(batch, capacity)

    def forward(self, x, context, state=None):
        return super().forward(x, context, state and self.cache)


class SharesABuffer(Plain):
    """All layers and sequences write into one buffer, to save memory."""

    caught_by = "states-are-separate"
    buffers_by_shape: ClassVar[dict] = {}

    def init_state(self, batch, capacity):
        state = super().init_state(batch, capacity)
        state.k = self.buffers_by_shape.setdefault(tuple(state.k.shape), state.k)
        return state


class Growing(Cache):
    def append(self, k, v):
        self.k, self.v = torch.cat([self.k[:, :, :self.columns], k], dim=2), torch.cat([self.v[:, :, :self.columns], v], dim=2)
        self.columns = self.k.shape[2]
        return self.k, self.v

    nbytes = 0


class HidesItsSize(Plain):
    """Its state grows, and its `nbytes` are 0."""

    caught_by = "a-state-tells-its-size"

    remembers = Growing

    def init_state(self, batch, capacity):
        return super().init_state(batch, 0)


class NaNForEmptyRows(Plain):
    """Hides padding from padding too, so a row of padding sees no key."""

    caught_by = "rows-without-texts-are-finite"

    def allowed(self, context):
        return super().allowed(context) & (context.keys or context.layout).real[:, None, None]


class Overflows(Plain):
    """A hand-written softmax that does not subtract the largest score first."""

    caught_by = "extreme-inputs-are-finite"

    def weights(self, q, k, context):
        weights = self.scores(q, k, context).exp() * self.allowed(context)
        return weights / weights.sum(dim=-1, keepdim=True)


class HearsPaddingOfTheMemory(Plain):
    """In cross-attention every column of the memory counts."""

    caught_by = "reads-a-memory"

    def allowed(self, context):
        if context.memory is None:
            return super().allowed(context)
        return torch.ones(context.layout.shape[1], context.memory.hidden.shape[1], dtype=torch.bool)


class Source(State):
    """Keys and values of a memory."""

    joins = True

    def __init__(self, k, v):
        self.k, self.v = k, v

    @property
    def length(self):
        return self.k.shape[2]

    @property
    def nbytes(self):
        return self.k.nbytes + self.v.nbytes

    def reorder(self, index):
        self.k, self.v = self.k[index], self.v[index]

    def truncate(self, length):
        pass

    def join(self, other, columns, capacity):
        self.k, self.v = (torch.cat([latest(one, 2, columns) for one in both])
                          for both in ((self.k, other.k), (self.v, other.v)))


class Remembering(Plain):
    """Correct: keeps keys and values of a memory between steps."""

    keeps: ClassVar[type[Source]] = Source

    def remember(self, memory):
        return self.keeps(self.heads(self.k(memory.hidden)), self.heads(self.v(memory.hidden)))

    def forward(self, x, context, state=None):
        if context.memory is None or state is None:
            return super().forward(x, context, state)
        weights = self.weights(self.heads(self.q(x)), state.k, context)
        return self.out((weights @ state.v).transpose(1, 2).flatten(2))


class Stuck(Source):
    def reorder(self, index):
        pass


class DoesNotReorderTheMemory(Remembering):
    """Reordering the state of a memory does nothing."""

    caught_by = "remembered-rows-go-on"

    keeps = Stuck


class PadsAtTheEnd(Source):
    def join(self, other, columns, capacity):
        self.k, self.v = (torch.cat([F.pad(one, (0, 0, 0, columns - one.shape[2])) for one in both])
                          for both in ((self.k, other.k), (self.v, other.v)))


class JoinsMemoriesAtTheFront(Remembering):
    """Joining pads the shorter memory on the right instead of the left."""

    caught_by = "remembered-rows-go-on"

    keeps = PadsAtTheEnd


class LooksBackInTheMemory(Plain):
    """In cross-attention a token sees the memory up to its own column only."""

    caught_by = "reads-a-memory"

    def allowed(self, context):
        allowed = super().allowed(context)
        return allowed if context.memory is None else allowed & torch.ones(allowed.shape[-2:], dtype=torch.bool).tril()


class DeclaresCrossAndLooksAtItself(Plain):
    """Declares that it reads a memory, and never does."""

    caught_by = "reads-a-memory"

    def forward(self, x, context, state=None):
        from miniformer.kernel import Context

        return super().forward(x, context if context.memory is None else Context.plain(x))


class NormalisesOverTheBatch(Plain):
    """Subtracts the mean over the batch."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context, state=None):
        return super().forward(x - x.mean(dim=0, keepdim=True), context, state)


class DropsOutInEval(Plain):
    """F.dropout without `training=self.training`."""

    caught_by = "is-the-same-twice-in-eval"

    def weights(self, q, k, context):
        return F.dropout(super().weights(q, k, context), 0.1)


class ChangesItsInput(Plain):
    """Saves memory by scaling its input in place."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context, state=None):
        with torch.no_grad():
            x.mul_(1.5)
        return super().forward(x, context, state)


class ReturnsFloat32(Plain):
    """Computes in float32 for precision, and stays there."""

    caught_by = "keeps-dtype-and-device"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state).float()


class Float64Constant(Plain):
    """A vector of float64 numbers makes float64 of everything."""

    caught_by = "keeps-dtype-and-device"

    def forward(self, x, context, state=None):
        return super().forward(x, context, state) * torch.ones(self.d_model, dtype=torch.float64, device=x.device)


class MakesTensorsOnTheCPU(Plain):
    """A mask made without the device of the input."""

    caught_by = "keeps-dtype-and-device"

    def allowed(self, context):
        keys = context.keys or context.layout
        real = torch.ones(keys.shape[1], dtype=torch.bool)
        return super().allowed(context) & real[None, None, None]

    def forward(self, x, context, state=None):
        return super().forward(x, context, state) + torch.zeros(self.d_model, dtype=x.dtype)


class KeepsHeadsInAList(Plain):
    """Has layers in a Python list, which are not part of the module."""

    caught_by = "is-saved-and-loaded"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.more = [nn.Linear(d_model, d_model)]

    def forward(self, x, context, state=None):
        return super().forward(x + self.more[0].to(x.dtype)(x), context, state)


class HoldsALambda(Plain):
    """Has an attribute that cannot be pickled, so it cannot go to another process."""

    caught_by = "is-saved-and-loaded"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.scale = lambda x: 2 * x

    def forward(self, x, context, state=None):
        return super().forward(self.scale(x), context, state)


class ForgetsItsDefault(Plain):
    """The meaning of an option's default depends on how many instances were built before."""

    caught_by = "is-saved-and-loaded"
    built: ClassVar[list] = [1.0]

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.scale = self.built[0]
        self.built[0] += 0.1

    def forward(self, x, context, state=None):
        return super().forward(x * self.scale, context, state)


class FreezesAParameter(Plain):
    """A parameter takes no gradient."""

    caught_by = "trains-every-parameter"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.q.weight.requires_grad_(False)


class HasAnUnusedParameter(Plain):
    """A layer is built and never called."""

    caught_by = "trains-every-parameter"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.gate = nn.Linear(d_model, d_model)


class DetachesWeights(Plain):
    """A detach() left from debugging: queries and keys learn nothing."""

    caught_by = "gradients-are-right"

    def weights(self, q, k, context):
        return super().weights(q, k, context).detach()


class SetsTheSeed(Plain):
    """Seeds torch to be repeatable, and so every run."""

    caught_by = "leaves-the-process-alone"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        torch.manual_seed(0)
        super().__init__(d_model, n_heads, **options)


class ChangesASetting(Plain):
    """Lets matrix products be less precise, for the whole process."""

    caught_by = "leaves-the-process-alone"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        torch.set_float32_matmul_precision("medium")


class IgnoresAnOption(Plain):
    """Accepts `sharpness` and ignores it."""

    caught_by = "every-option-counts"

    def __init__(self, d_model: int, n_heads: int, *, sharpness: Annotated[float, Field(gt=0)] = 1.0, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.sharpness = sharpness


class LooksAtItsWeightsInTheConstructor(Plain):
    """Cannot be built on the meta device, where every model is built once before its weights exist."""

    caught_by = "builds-from-its-options"

    def __init__(self, d_model: int, n_heads: int, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.norm = float(self.q.weight.detach().norm())


class KernelsDisagree(Plain):
    """One of two kernels forgets the scale."""

    caught_by = "kernels-agree"

    def __init__(self, d_model: int, n_heads: int, *, kernel: KernelName = "auto", **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.kernel = kernel

    def scores(self, q, k, context):
        return super().scores(q, k, context) * (1.1 if self.kernel == "eager" else 1.0)


class BreaksLessThanItSays(Plain):
    """Declares that it breaks a promise that it keeps."""

    caught_by = "rows-stand-alone"
    known_violations: ClassVar = {"rows-stand-alone": "it was so once"}
