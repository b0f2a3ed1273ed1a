"""Feed-forwards that were written before the properties that have to find them."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from miniformer.kernel import FeedForward

from .ffn import Plain


class SqueezesASingleToken(Plain):
    """One token, as in decoding, comes back as `[B, D]`, which a residual sum spreads over all rows."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context):
        return super().forward(x, context).squeeze(1)


class ReturnsAListOfTokens(Plain):
    """Tokens go to the experts as one list, and a batch of one row comes back as that list."""

    caught_by = "keeps-the-shape"

    def forward(self, x, context):
        out = super().forward(x, context)
        return out.flatten(0, 1) if len(x) == 1 else out


class ReturnsItsWorkspace(Plain):
    """Without gradients, it returns a tensor that its next call of that shape overwrites."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.rooms = {}

    def forward(self, x, context):
        out = super().forward(x, context)
        return out if torch.is_grad_enabled() else self.rooms.setdefault((out.shape, out.dtype), out).copy_(out)


class HasRoomForTheFirstBatch(Plain):
    """It has room for the tokens of the largest first batch: those beyond that number in a later one are dropped."""

    caught_by = "earlier-calls-change-nothing"

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.room = None

    def forward(self, x, context):
        self.room = self.room or x.shape[0] * x.shape[1]
        fits = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2]) < self.room
        return super().forward(x, context) * fits[..., None]


class SoftplusByHand(Plain):
    """log(1 + exp(x)), which is infinite from some hundreds on."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x, context):
        return self.down((1 + self.up(x).exp()).log())


class SwishByHand(Plain):
    """x / (1 + exp(-x)): right for large negative numbers too, where its gradient is NaN."""

    caught_by = "extreme-inputs-are-finite"

    def forward(self, x, context):
        up = self.up(x)
        return self.down(up / (1 + (-up).exp()))


class SquaresWithoutBound(Plain):
    """A cubed activation is divided by the largest of the batch: beside a token of 10000 all others give nothing."""

    caught_by = "sizes-do-not-mix"

    def forward(self, x, context):
        up = self.up(x)
        return self.down(up * up.detach().square() / up.detach().square().amax().clamp(min=100))


class ScalesItsInputInFloat32(Plain):
    """A copy in float32 is clipped in place; in float32 it is no copy, and the residual stream is clipped."""

    caught_by = "leaves-its-inputs-alone"

    def forward(self, x, context):
        wide = x.clone() if x.dtype is torch.float64 else x.float()
        return super().forward(wide.clamp_(-1, 1).to(x.dtype), context)


class Dropping(Plain):
    """Correct: drops elements in training."""

    def __init__(self, d_model: int, d_ff: int, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1) -> None:
        super().__init__(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, context):
        return self.dropout(super().forward(x, context))


class CentresOverTheBatchUnderDropout(Dropping):
    """In training with dropout, statistics are those of the batch."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context):
        return super().forward(x - x.mean(dim=(0, 1)) if self.training and self.dropout.p else x, context)


class LooksAheadUnderDropout(Dropping):
    """In training with dropout, a token reads the one after it."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        return super().forward(x + x.roll(-1, dims=1) if self.training and self.dropout.p else x, context)


class JittersTheStream(Plain):
    """The router's noise in training is multiplied into the input itself, and all later layers read it (transformers#33969)."""

    caught_by = "leaves-its-inputs-alone"

    def __init__(self, d_model: int, d_ff: int, *, jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1) -> None:
        super().__init__(d_model, d_ff)
        self.jitter = jitter

    def forward(self, x, context):
        if self.training and self.jitter:
            with torch.no_grad():
                x *= torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        return super().forward(x, context)


class Routed(FeedForward):
    """Correct: each token goes to the `top_k` of three experts that its gate prefers, with a loss for their balance."""

    kind: ClassVar[str] = "ffn"

    def __init__(self, d_model: int, d_ff: int, *, top_k: Annotated[int, Field(ge=1, le=3)] = 1) -> None:
        super().__init__(d_model, d_ff)
        self.top_k, self.gate = top_k, nn.Linear(d_model, 3)
        self.experts = nn.ModuleList(Plain(d_model, d_ff) for _ in range(3))

    def forward(self, x, context):
        gates = self.gate(x).softmax(dim=-1)
        if self.training:
            self.balance(gates, context)
        picked = self.picked(gates, gates.topk(self.top_k, dim=-1).indices)
        return sum(self.run(expert, x, context) * picked[..., i:i + 1] for i, expert in enumerate(self.experts)
                   if self.counts(picked[..., i]))

    def picked(self, gates, best):
        return torch.zeros_like(gates).scatter(-1, best, gates.gather(-1, best))

    def counts(self, gate):
        return True

    def run(self, expert, x, context):
        return expert(x, context)

    def balance(self, gates, context):
        real = context.layout.real[..., None]
        shares = (gates * real).sum(dim=(0, 1)) / real.sum().clamp(min=1)
        context.record("balance", shares.square().sum(), loss=True)


class SkipsIdleExperts(Routed):
    """An expert without a token is not run, so its weights have no gradient, for which other processes wait."""

    caught_by = "trains-every-parameter"

    def counts(self, gate):
        return bool((gate > 0).any())


class TrainsTheFirstChoiceOnly(Routed):
    """With more than one expert for a token, the gates of all but the first are cut off from learning."""

    caught_by = "gradients-are-right"

    def picked(self, gates, best):
        later = super().picked(gates, best[..., 1:])
        return super().picked(gates, best[..., :1]) + later.detach()


class FreezesExpertsOfManyChoices(Routed):
    """With all three experts for each token, the last one learns nothing."""

    caught_by = "trains-every-parameter"

    def run(self, expert, x, context):
        out = super().run(expert, x, context)
        return out.detach() if self.top_k == 3 and expert is self.experts[-1] else out


class RecordsALossThatGrows(Routed):
    """The balance is taken over all batches so far, and the one batch given twice records two losses."""

    caught_by = "recorded-losses-are-means"

    def __init__(self, d_model: int, d_ff: int, **options) -> None:
        super().__init__(d_model, d_ff, **options)
        self.sums = 0

    def balance(self, gates, context):
        real = context.layout.real[..., None]
        sums = (gates * real).sum(dim=(0, 1)) + self.sums
        self.sums = sums.detach()
        context.record("balance", (sums / sums.sum().clamp(min=1e-9)).square().sum(), loss=True)


class Leaky(Plain):
    """Correct: a leaky rectifier, scaled by `gain`."""

    def __init__(self, d_model: int, d_ff: int, *, slope: Annotated[float, Field(ge=0)] = 0.2,
                 gain: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__(d_model, d_ff)
        self.slope, self.gain = slope, gain

    def forward(self, x, context):
        return self.down(self.gain * nn.functional.leaky_relu(self.up(x), self.slope))


class TakesZeroForNothing(Leaky):
    """A slope of 0 is read as no slope given, and the default is used."""

    caught_by = "zero-is-a-value"

    def __init__(self, d_model: int, d_ff: int, *, slope: Annotated[float, Field(ge=0)] = 0.2) -> None:
        super().__init__(d_model, d_ff, slope=slope or 0.2)


class SharesItsGate(Plain):
    """All instances of a width share one matrix, which each of them trains."""

    caught_by = "instances-share-nothing"
    gates: ClassVar[dict] = {}

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.gate = self.gates.setdefault((d_model, torch.get_default_device()), nn.Linear(d_model, d_model))

    def forward(self, x, context):
        return super().forward(x, context) * self.gate(x).sigmoid()
