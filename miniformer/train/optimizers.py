"""The built-in optimizer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from miniformer.kernel.recipes import OptimizerRecipe


class AdamW(OptimizerRecipe):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), in one fused pass.

    Args:
        lr: peak learning rate.
        weight_decay: on matrices only.
        beta1, beta2: decay of the running means of gradients and of their squares.
        eps: added to the root of the mean square.
        fused: update all parameters in one kernel, if none of them is complex.
    """

    state_numbers: ClassVar[int] = 2

    def __init__(self, lr: float, weight_decay: float, *, beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9,
                 beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95, eps: Annotated[float, Field(gt=0)] = 1e-8,
                 fused: bool = True) -> None:
        super().__init__(lr, weight_decay)
        self.betas, self.eps, self.fused = (beta1, beta2), eps, fused

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # torch's fused kernel takes real numbers only
        real = all(parameter.is_floating_point() for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused and real)
