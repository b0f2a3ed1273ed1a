"""A feed-forward of many experts, of which each token uses a few.

Shapes: N tokens that are not padding, D = d_model, E experts, K = top_k, M = N * K assignments of a token to an expert.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from miniformer.kernel import Context, FeedForward, Slot, build


class MixtureOfExperts(FeedForward):
    """The top_k best of n_experts feed-forwards for each token, weighted (Jiang 2024, arXiv:2401.04088).

    `[B, T, D] -> [B, T, D]`. A linear router scores the experts for each token; the softmax of the scores, rescaled to
    sum to one over the chosen experts, weighs what they return. With `top_k` 1 the weight is the probability itself, as
    in the Switch Transformer: rescaled it would always be one, and the router would learn nothing from the task.

    Experts have no capacity limit and no token is dropped, so a token's output depends on that token only. Padding goes to
    no expert, and its output is zero.

    In training, `balance * E * sum_e(f_e * p_e)` is recorded as the loss `moe-balance` (Fedus 2021, arXiv:2101.03961):
    f_e is the fraction of the assignments that expert e got, p_e its mean probability, both over the tokens that are
    not padding. It is `balance` for a router that spreads its tokens evenly, and `balance * E / top_k` for one that
    always chooses the same experts.

    Args:
        n_experts: how many experts there are, each of width d_ff.
        top_k: how many of them serve each token.
        inner: the feed-forward that each expert is.
        balance: weight of the load-balance loss; 0 records none.

    Raises:
        ValueError: `top_k` is not between 1 and `n_experts`.
    """

    def __init__(self, d_model: int, d_ff: int, *, n_experts: Annotated[int, Field(ge=2)] = 8,
                 top_k: Annotated[int, Field(ge=1)] = 2, inner: Slot[FeedForward] = "swiglu",
                 balance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01) -> None:
        super().__init__(d_model, d_ff)
        if not 1 <= top_k <= n_experts:
            raise ValueError(f"top_k is {top_k} and n_experts is {n_experts}: a token goes to at least one expert, and "
                             "to no more than there are")
        self.n_experts, self.top_k, self.balance = n_experts, top_k, balance
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(build(FeedForward, inner, d_model, d_ff) for _ in range(n_experts))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if not context.layout.padded:
            return self._mix(x.flatten(0, 1), context).view_as(x)
        real_BT = context.layout.real
        mixed_ND = self._mix(x[real_BT], context)
        return mixed_ND.new_zeros(x.shape).masked_scatter(real_BT[..., None], mixed_ND)

    def _mix(self, x_ND: Tensor, context: Context) -> Tensor:
        logits_NE: Tensor = self.router(x_ND)
        # float32 at least, as half precision cannot tell close experts apart
        p_NE = logits_NE.softmax(dim=-1, dtype=torch.promote_types(logits_NE.dtype, torch.float32))
        weights_NK, chosen_NK = p_NE.topk(self.top_k, dim=-1)
        if self.top_k > 1:
            weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        counts_E = nn.functional.one_hot(chosen_NK, self.n_experts).sum(dim=(0, 1))
        if self.training and self.balance:
            context.record("moe-balance", self.balance * self._imbalance(counts_E, p_NE), loss=True)

        # Assignments are sorted by expert, so that each expert gets one slice. `tolist` waits for the device, once.
        order_M = chosen_NK.flatten().argsort(stable=True)
        slices = torch.split(x_ND[order_M // self.top_k], counts_E.tolist())
        # An expert without tokens runs too: data parallelism needs its gradients to be zeros, not missing.
        y_MD = torch.cat([self._expert(expert, tokens_nD, context) for expert, tokens_nD in zip(self.experts, slices)])
        # Outputs are put back by index, since index_add on a GPU sums in another order each time, and rounds differently.
        y_NKD = y_MD[order_M.argsort()].view(*chosen_NK.shape, self.d_model)
        return (y_NKD * weights_NK[..., None].to(y_NKD.dtype)).sum(dim=1)

    def _expert(self, expert: nn.Module, tokens_nD: Tensor, context: Context) -> Tensor:
        """The output of an expert for its tokens. Its own records, as of a mixture inside a mixture, join those of the pass."""
        row_1nD = tokens_nD[None]
        out_1nD: Tensor = expert(row_1nD, Context.plain(row_1nD, records=context.records))
        return out_1nD[0]

    def _imbalance(self, counts_E: Tensor, p_NE: Tensor) -> Tensor:
        """1 for an even load, E / K for the most uneven one, 0 without tokens."""
        n = max(len(p_NE), 1)
        return (counts_E * p_NE.sum(dim=0)).sum() * (self.n_experts / (n * n * self.top_k))
