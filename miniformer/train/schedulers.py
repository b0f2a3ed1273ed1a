"""Learning-rate schedules, stepped once per optimizer step. All but one start with a linear warm-up."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from miniformer.kernel.recipes import SchedulerRecipe


class Linear(SchedulerRecipe):
    """Linear warm-up over `warmup_steps`, then constant."""

    def build(self, optimizer: Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Part of the peak rate at an optimizer step, counted from 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """Part of the peak rate once warm."""
        return 1.0


class Constant(Linear):
    """The learning rate as it is; with `warmup_steps`, reached linearly."""


class Cosine(Linear):
    """Linear warm-up, then half a cosine down to a floor (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        floor: part of the peak rate that is left at the end.
    """

    def __init__(self, total_steps: int, warmup_steps: int, *, floor: Annotated[float, Field(ge=0, le=1)] = 0.1) -> None:
        super().__init__(total_steps, warmup_steps)
        self.floor = floor

    def after_warmup(self, step: int) -> float:
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2


class OneCycle(SchedulerRecipe):
    """Up to the peak and far down again, for super-convergence (Smith & Topin 2018, arXiv:1708.07120).

    Rises for `warmup_steps`, or for 30 % of the run where that is 0.
    """

    def build(self, optimizer: Optimizer) -> LRScheduler:
        steps, peak = self.total_steps + 1, self.warmup_steps or 0.3 * self.total_steps
        rise = min((peak + 1) / steps, 1.0)  # torch has the peak at step rise * steps - 1
        # momentum is left alone: the schedule is the learning rate's
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps,
                          pct_start=rise, cycle_momentum=False)
