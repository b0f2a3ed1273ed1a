"""Attentions that were written before the properties that have to find them: dropout in training, biases, mixed layouts."""

import torch
import torch.nn.functional as F

from .attention import HearsPadding, MixesDocuments, Plain, order, together

# number 7: training mode of what draws random numbers


class LooksAheadUnderDropout(Plain):
    """The fast path for training with dropout takes no causal mask; with dropout 0 and in evaluation all is well."""

    caught_by = "no-look-ahead"

    def allowed(self, context):
        fast = self.training and self.dropout and context.memory is None
        return together(context) if fast else super().allowed(context)


class MixesDocumentsUnderDropout(Plain):
    """In training with dropout a packed row is one text."""

    caught_by = "documents-do-not-mix"

    def allowed(self, context):
        fast = self.training and self.dropout and context.memory is None
        return MixesDocuments.allowed(self, context) if fast else super().allowed(context)


class HearsPaddingUnderDropout(HearsPadding):
    """In training with dropout padding is not masked."""

    caught_by = "padding-is-not-heard"

    def allowed(self, context):
        return super().allowed(context) if self.training and self.dropout else Plain.allowed(self, context)


class CentresOverTheBatchUnderDropout(Plain):
    """In training with dropout the mean of the batch is taken from the input."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context, state=None):
        return super().forward(x - x.mean(dim=0) if self.training and self.dropout else x, context, state)


class DropsItsInputInPlace(Plain):
    """Dropout of the input with `inplace=True`, on the residual stream itself."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context, state=None):
        return super().forward(F.dropout(x, self.dropout, self.training, inplace=True), context, state)


class DrawsFromItsOwnGenerator(Plain):
    """Dropout draws from a generator that no seed of the run reaches, so no run can be repeated."""

    caught_by = "is-the-same-twice-in-eval"

    def weights(self, q, k, context):
        weights = self.scores(q, k, context).masked_fill(~self.allowed(context), -torch.inf).softmax(dim=-1)
        if not self.training or not self.dropout:
            return weights
        generator = torch.Generator(weights.device)
        generator.seed()
        kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= self.dropout
        return weights * kept / (1 - self.dropout)


class LosesTheBiasUnderDropout(Plain):
    """The kernel that draws dropout takes no bias."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if self.training and self.dropout else super().scores(q, k, context)


# number 8: bias


class BiasOfTheFirstHeadForAll(Plain):
    """All heads get the bias of the first."""

    caught_by = "each-head-has-its-bias"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + context.bias[:, :1].to(scores.dtype)


class ScalesTheBias(Plain):
    """The bias is added before the scores are divided by the root of the head's width."""

    caught_by = "a-bias-of-log-2-counts-twice"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2)
        return (scores if context.bias is None else scores + context.bias.to(scores.dtype)) * self.d_head ** -0.5


class LosesAPositiveBias(Plain):
    """A bias above 0 counts as 0, as if it were a mask."""

    caught_by = "a-bias-of-log-2-counts-twice"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + context.bias.clamp(max=0).to(scores.dtype)


class BiasOnlyLookingBack(Plain):
    """An encoder's bias is lost."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None or not context.causal else super().scores(q, k, context)


class BiasOfTheLastQuery(Plain):
    """All queries get the bias of the last, which changes nothing for one that is linear in distance, as ALiBi is."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + context.bias[:, :, -1:].to(scores.dtype)


class BiasAfterTheSoftmax(Plain):
    """Weights are multiplied by the exponential of the bias after the softmax, and do not sum to one."""

    caught_by = "a-bias-counts"

    def weights(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        weights = scores.masked_fill(~self.allowed(context), -torch.inf).softmax(dim=-1)
        weights = weights if context.bias is None else weights * context.bias.to(weights.dtype).exp()
        return F.dropout(weights, self.dropout, self.training)


class BiasOfTheFirstRowForAll(Plain):
    """All rows of the batch get the bias of the first, also where their positions differ."""

    caught_by = "padded-is-alone"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        return scores if context.bias is None else scores + context.bias[:1].to(scores.dtype)


class BiasOnlyForTheFirstHeads(Plain):
    """Of more than two heads, the second half has no bias."""

    caught_by = "a-bias-counts"

    def scores(self, q, k, context):
        scores = q @ k.transpose(-1, -2) * self.d_head ** -0.5
        if context.bias is None:
            return scores
        counts = torch.arange(self.n_heads, device=scores.device) < max(2, self.n_heads // 2)
        return scores + context.bias.to(scores.dtype) * counts[:, None, None]


# number 10: layouts


class AsksTheFirstRowWhetherItIsPacked(Plain):
    """If the first row holds one text, all rows do: packed rows beside it are mixed."""

    caught_by = "packed-is-separate"

    def allowed(self, context):
        allowed = super().allowed(context)
        if context.memory is not None or int((context.keys or context.layout).documents[0].max()) > 1:
            return allowed
        near = True if self.rule is None else order(context).abs() < self.rule.size
        return allowed | (MixesDocuments.allowed(self, context) & near)


class AsksTheFirstRowForPadding(Plain):
    """If the first row has no padding, no row is taken to have any."""

    caught_by = "padded-is-alone"

    def allowed(self, context):
        allowed, keys = super().allowed(context), context.keys or context.layout
        if context.memory is not None or not bool(keys.real[0].all()):
            return allowed
        columns = torch.arange(keys.shape[1], device=keys.documents.device)
        past = columns[-context.layout.shape[1]:, None] >= columns
        return allowed | (~keys.real[:, None, None] & (past if context.causal else torch.ones_like(past)))


class AsksTheFirstRowForItsSide(Plain):
    """If the first row has no padding on the left, a mask by columns serves all rows, which hear padding on their left."""

    caught_by = "padded-is-alone"

    def allowed(self, context):
        keys = context.keys or context.layout
        if context.memory is not None or not context.causal or keys.packed or not bool(keys.real[0, 0]):
            return super().allowed(context)
        columns = torch.arange(keys.shape[1], device=keys.documents.device)
        past = columns[-context.layout.shape[1]:, None] >= columns
        near = True if self.rule is None else order(context).abs() < self.rule.size
        return (past & near).expand(keys.shape[0], 1, -1, -1)


class FindsTextsByTheirFirstPlace(Plain):
    """In packed rows a text lasts until the next position 0 of a token, so padding after the last text belongs to it."""

    caught_by = "packed-is-separate"

    def allowed(self, context):
        allowed, keys = super().allowed(context), context.keys or context.layout
        if context.memory is not None or context.keys is not None or not keys.packed:
            return allowed
        number = ((keys.positions == 0) & keys.real).long().cumsum(dim=1)
        columns = torch.arange(keys.shape[1], device=keys.documents.device)
        one_text, past = number[:, :, None] == number[:, None], columns[:, None] >= columns
        heard = one_text & ~keys.real[:, None] & (past if context.causal else torch.ones_like(past))
        return allowed | heard[:, None]


class MasksNothingBesideFullRows(Plain):
    """A batch in which some row is full takes the path without padding, if no row of it is packed with more than two texts."""

    caught_by = "padded-is-alone"

    def allowed(self, context):
        allowed, keys = super().allowed(context), context.keys or context.layout
        full = (keys.documents == 1).all(dim=1)
        few = int(keys.documents.max()) == 2
        if context.memory is not None or not bool(full.any()) or not few:
            return allowed
        return allowed | (~keys.real[:, None, None] & (order(context) <= 0))
