"""Learning-rate schedules, stepped once per optimizer step. All but `OneCycle` start with a linear warm-up."""

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
        """The rate at an optimizer step, counted from 0, as a part of the peak rate."""
        # + 1, because a rate of 0 would waste the first step
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """The rate after the warm-up, as a part of the peak rate."""
        return 1.0


class Constant(Linear):
    """A constant learning rate, after a linear warm-up over `warmup_steps`."""


class Cosine(Linear):
    """Linear warm-up, then half a cosine down to a floor (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        floor: the rate at the end, as a part of the peak rate.
    """

    def __init__(self, total_steps: int, warmup_steps: int, *, floor: Annotated[float, Field(ge=0, le=1)] = 0.1) -> None:
        super().__init__(total_steps, warmup_steps)
        self.floor = floor

    def after_warmup(self, step: int) -> float:
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2


class OneCycle(SchedulerRecipe):
    """Rises to the peak and falls far below the start, for super-convergence (Smith & Topin 2018, arXiv:1708.07120).

    It rises for `warmup_steps`, or for 30 % of the run if that is 0.
    """

    def build(self, optimizer: Optimizer) -> LRScheduler:
        steps, peak = self.total_steps + 1, self.warmup_steps or 0.3 * self.total_steps
        rise = min((peak + 1) / steps, 1.0)  # torch has the peak at step rise * steps - 1
        # the paper cycles momentum too; it is left alone, because a schedule here sets the learning rate only
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps,
                          pct_start=rise, cycle_momentum=False)
