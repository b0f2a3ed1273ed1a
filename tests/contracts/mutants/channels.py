"""Components that leave a head or an element out, or are wrong only while they draw random numbers; and honest neighbours."""

import torch
import torch.nn.functional as F
from torch import nn

from . import attention, ffn, norm, unseen_modules
from .modules import PlainHead
from .position import PlainBias


class ReadsTheMemoryInPairsOfHeads(attention.Plain):
    """Of an odd number of heads, the last one gives zeros when a memory is read."""

    caught_by = "uses-every-channel"

    def weights(self, q, k, context):
        weights, used = super().weights(q, k, context), self.n_heads - self.n_heads % 2 or 1
        return weights if context.memory is None else weights * (torch.arange(self.n_heads) < used)[:, None, None]


class PadsTheQueriesOfOddHeads(attention.Plain):
    """In training, the last element of a query of odd width is replaced by a zero."""

    caught_by = "uses-every-channel"

    def scores(self, q, k, context):
        if self.training and self.d_head % 2 and self.d_head > 1:
            q = F.pad(q[..., :-1], (0, 1))
        return super().scores(q, k, context)


class LosesTheOddUnit(ffn.Plain):
    """Hidden units run in two halves, and an odd last one in none."""

    caught_by = "uses-every-channel"

    def forward(self, x, context):
        half = self.up.out_features // 2
        halves = zip(self.up(x).split(half, dim=-1)[:2], self.down.weight.split(half, dim=1)[:2], strict=True)
        return sum(hidden.relu() @ weight.T for hidden, weight in halves) + self.down.bias


class KeepsTheLargestUnits(ffn.Plain):
    """Correct: of the hidden units, those in the lower half give zeros, which are others for each token."""

    def forward(self, x, context):
        hidden = F.gelu(self.up(x))
        return self.down(hidden * (hidden >= hidden.median(dim=-1, keepdim=True).values))


class ForgetsTheOddElement(norm.Plain):
    """Vectors are normalised in pairs of elements, and an odd last element is zero."""

    caught_by = "uses-every-channel"

    def forward(self, x):
        even = x.shape[-1] - x.shape[-1] % 2
        return F.pad(super().forward(x)[..., :even], (0, x.shape[-1] - even))


class HasNoOddClass(PlainHead):
    """Classes are scored in pairs, and an odd last one has a score of zero."""

    caught_by = "uses-every-channel"

    def forward(self, x, select=None):
        out, even = super().forward(x, select), self.n_outputs - self.n_outputs % 2
        return F.pad(out[..., :even], (0, self.n_outputs - even)) if even else out


class ComparesWithTheLastClass(PlainHead):
    """Correct: the score of the last class is zero, and the others are compared with it."""

    def __init__(self, d_model: int, n_outputs: int) -> None:
        super().__init__(d_model, n_outputs)
        if n_outputs == 1:
            raise ValueError("a class needs another one to be compared with")
        self.out = nn.Linear(d_model, n_outputs - 1)

    def forward(self, x, select=None):
        return F.pad(super().forward(x, select), (0, 1))


class BiasOfHalfTheHeads(PlainBias):
    """Correct: every second head has no bias, however many heads there are."""

    def bias(self, q_positions, k_positions):
        heads = torch.arange(self.n_heads, device=q_positions.device)
        return super().bias(q_positions, k_positions) * (heads % 2 == 0)[:, None, None]


class BiasOfFourHeadsAtATime(PlainBias):
    """Heads are served in fours, and those of a last four that is not complete have no bias."""

    caught_by = "tells-places-apart"

    def bias(self, q_positions, k_positions):
        served = self.n_heads // 4 * 4 or self.n_heads
        return super().bias(q_positions, k_positions) * (torch.arange(self.n_heads) < served)[:, None, None]


class HearsAPaddedMemoryUnderDropout(attention.Plain):
    """The kernel that draws dropout takes no mask for a memory."""

    caught_by = "reads-a-memory"

    def allowed(self, context):
        allowed = super().allowed(context)
        fast = self.training and self.dropout and context.memory is not None
        return torch.ones_like(allowed) if fast else allowed


class AveragesPaddingUnderDropout(unseen_modules.Dropping):
    """In training with dropout, a summary is the mean over all columns."""

    caught_by = "summaries-are-blind-to-padding"

    def summary(self, x, layout):
        return self(x).mean(dim=1) if self.training and self.dropout.p else super().summary(x, layout)


class CentresOverVectorsUnderNoise(unseen_modules.Noisy):
    """In training with noise, the mean of the last vectors is taken from all."""

    caught_by = "acts-on-each-vector"

    def forward(self, x):
        return super().forward(x - x.mean(dim=-2, keepdim=True) if self.training and self.noise and x.ndim > 1 else x)


class RotatesNothingUnderDropout(attention.Plain):
    """The kernel that draws dropout leaves queries and keys as they are."""

    caught_by = "queries-and-keys-are-rotated"

    def forward(self, x, context, state=None):
        if not (self.training and self.dropout) or context.memory is not None:
            return super().forward(x, context, state)
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        return self.out((self.weights(q, k, context) @ v).transpose(1, 2).flatten(2))
