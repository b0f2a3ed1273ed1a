"""Feed-forwards: `Plain` and `PlainMixture` are correct, every other class has one fault."""

from typing import ClassVar

import torch
from torch import nn

from miniformer.kernel import FeedForward


class Plain(FeedForward):
    """Up, GELU, down."""

    kind: ClassVar[str] = "ffn"

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x, context):
        return self.down(nn.functional.gelu(self.up(x)))


class MixesTokens(Plain):
    """Adds the mean over the sequence."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        return super().forward(x + x.mean(dim=1, keepdim=True), context)


class NormalisesOverTheBatch(Plain):
    """Batch statistics, in evaluation too."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context):
        return super().forward((x - x.mean(dim=(0, 1))) / x.std(dim=(0, 1)), context)


class DropsWhatDoesNotFit(Plain):
    """Drops tokens after the fourth of a row, as experts with a capacity do."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        return super().forward(x, context) * (torch.arange(x.shape[1], device=x.device) < 4)[:, None]


class PlainMixture(Plain):
    """Two experts weighed by a gate, with a loss for their balance over real tokens."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.gate = nn.Linear(d_model, 2)
        self.other = Plain(d_model, d_ff)

    def forward(self, x, context):
        gates = self.gate(x).softmax(dim=-1)
        if self.training:
            self.balance(gates, context)
        return gates[..., :1] * super().forward(x, context) + gates[..., 1:] * self.other(x, context)

    def balance(self, gates, context):
        real = context.layout.real[..., None]
        shares = (gates * real).sum(dim=(0, 1)) / real.sum().clamp(min=1)
        context.record("balance", shares.square().sum(), loss=True)


class BalancesPadding(PlainMixture):
    """Padding counts in the balance."""

    caught_by = "padding-changes-nothing"

    def balance(self, gates, context):
        context.record("balance", gates.mean(dim=(0, 1)).square().sum(), loss=True)


class BalancesWithoutGradient(PlainMixture):
    """The loss has no gradient, so it trains nothing."""

    caught_by = "records-losses-that-train"

    def balance(self, gates, context):
        super().balance(gates.detach(), context)


class DividesByNoTokens(PlainMixture):
    """NaN for a batch of padding."""

    caught_by = "records-losses-that-train"

    def balance(self, gates, context):
        real = context.layout.real[..., None]
        context.record("balance", ((gates * real).sum(dim=(0, 1)) / real.sum()).square().sum(), loss=True)


class RecordsALossForEachExpert(PlainMixture):
    """A loss is one number, not two."""

    caught_by = "records-losses-that-train"

    def balance(self, gates, context):
        context.record("balance", gates.mean(dim=(0, 1)).square(), loss=True)


class NormalisesOverTheBatchInTraining(Plain):
    """Batch statistics in training, as batch normalisation has, and none in evaluation."""

    caught_by = "rows-stand-alone"

    def forward(self, x, context):
        return super().forward(x - x.mean(dim=(0, 1)) if self.training else x, context)


class DropsTokensInTraining(Plain):
    """In training it drops the tokens of a row with the smaller sums, as experts with a capacity do."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        out = super().forward(x, context)
        if self.training:
            out = out * (x.sum(dim=-1) >= x.sum(dim=-1).median(dim=1, keepdim=True).values)[..., None]
        return out


class AddsWhatStandsEightLater(Plain):
    """In rows of more than eight tokens, adds the token eight positions later."""

    caught_by = "acts-on-each-position"

    def forward(self, x, context):
        out = super().forward(x, context)
        return torch.cat([out[:, :-8] + out[:, 8:], out[:, -8:]], dim=1) if x.shape[1] > 8 else out


class CountsItsPasses(Plain):
    """A running scale in a buffer, which every pass in training changes."""

    caught_by = "a-pass-leaves-it-as-it-was"

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.register_buffer("passes", torch.ones(()))

    def forward(self, x, context):
        if self.training:
            self.passes += 1
        return super().forward(x, context) / self.passes.to(x.dtype)


class PutsBackInOneDtype(Plain):
    """Adds the output of a linear layer, which autocast rounds, to a tensor of the input's dtype."""

    caught_by = "runs-under-autocast"

    def forward(self, x, context):
        out = super().forward(x, context).flatten(0, 1)
        return torch.zeros_like(x).flatten(0, 1).index_add(0, torch.arange(len(out), device=x.device), out).view_as(x)


class LosesItsGradientUnderAutocast(Plain):
    """A product for low precision that has no backward pass."""

    caught_by = "runs-under-autocast"

    def forward(self, x, context):
        out = super().forward(x, context)
        return out.detach() if out.dtype is torch.bfloat16 else out
