"""Recipes of optimizers and schedules with one fault each."""

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from miniformer.kernel.recipes import trainable
from miniformer.train import optimizers, schedulers


class DecaysBiases(optimizers.AdamW):
    """All parameters are one group, with weight decay."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def groups(self, model):
        return [{"params": list(trainable(model)), "weight_decay": self.weight_decay}]


class JoinsItsGroups(optimizers.AdamW):
    """The groups are right, and the optimizer is built of their parameters only."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def build(self, groups):
        return AdamW([p for group in groups for p in group["params"]], lr=self.lr, weight_decay=self.weight_decay)


class NeverDecays(optimizers.AdamW):
    """Accepts a weight decay and ignores it."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def build(self, groups):
        return torch.optim.Adam([{"params": group["params"]} for group in groups], lr=self.lr)


class LeavesVectorsOut(optimizers.AdamW):
    """What does not decay is in no group, and so does not train."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def groups(self, model):
        return super().groups(model)[:1]


class Climbs(optimizers.AdamW):
    """Raises the loss instead of lowering it."""

    kind, caught_by = "optimizer", "lowers-a-simple-loss"

    def build(self, groups):
        return AdamW(groups, lr=self.lr, betas=self.betas, maximize=True)


class SetRate(torch.optim.Optimizer):
    """Gradient descent at the learning rate that it was built with, whatever its groups say."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.rate = lr

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - self.rate * group["weight_decay"]).sub_(p.grad, alpha=self.rate)


class DeafToSchedules(optimizers.AdamW):
    """The rates that a schedule writes into the groups are not read."""

    kind, caught_by = "optimizer", "follows-the-rates-of-its-groups"

    def build(self, groups):
        return SetRate(groups, self.lr)


class Heavy(torch.optim.Optimizer):
    """Descent with momentum, which is kept in a list."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.moving = [[torch.zeros_like(p) for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self):
        for group, moving in zip(self.param_groups, self.moving, strict=True):
            for p, m in zip(group["params"], moving, strict=True):
                m.mul_(0.9).add_(p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(m, alpha=group["lr"])


class LosesItsMomentum(optimizers.AdamW):
    """Momentum is not in the state that is saved."""

    kind, caught_by = "optimizer", "goes-on-from-its-state"

    def build(self, groups):
        return Heavy(groups, self.lr)


class Overshoots(schedulers.Linear):
    """The warm-up rises for one step too many."""

    kind, caught_by = "scheduler", "stays-between-zero-and-the-peak"

    def factor(self, step):
        return min(step + 1, self.warmup_steps + 1) / max(1, self.warmup_steps)


class FallsBelowZero(schedulers.Linear):
    """The decay is too short by the warm-up, and goes on below zero."""

    kind, caught_by = "scheduler", "stays-between-zero-and-the-peak"

    def after_warmup(self, step):
        return 1 - max(0, step - self.warmup_steps) / max(1, self.total_steps - 2 * self.warmup_steps)


class DividesByWhatIsLeft(schedulers.Linear):
    """A run that is all warm-up, or of one step, is divided by zero."""

    kind, caught_by = "scheduler", "stays-between-zero-and-the-peak"

    def after_warmup(self, step):
        return 1 - 0.9 * max(0, step - self.warmup_steps) / (self.total_steps - self.warmup_steps - 1)


class ColdStart(schedulers.Linear):
    """Accepts a number of warm-up steps and does no warm-up."""

    kind, caught_by = "scheduler", "warms-up-to-the-peak"

    def factor(self, step):
        return self.after_warmup(step)


class DecaysWhileWarming(schedulers.Cosine):
    """The cosine starts with the warm-up, and the peak is never reached."""

    kind, caught_by = "scheduler", "warms-up-to-the-peak"

    def after_warmup(self, step):
        return super().after_warmup(step + self.warmup_steps)


class CountsItself(schedulers.Cosine):
    """Counts its calls, which no state holds, so it starts anew when a run is resumed."""

    kind, caught_by = "scheduler", "hangs-on-the-step-alone"

    def build(self, optimizer):
        asked = iter(range(10**9))
        groups = len(optimizer.param_groups)
        return LambdaLR(optimizer, lambda step: self.factor(next(asked) // groups))


class OneRateForAll(schedulers.Cosine):
    """All groups get the rate of the first."""

    kind, caught_by = "scheduler", "scales-every-group-alike"

    def build(self, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        return super().build(optimizer)


class MovesTheMomentum(schedulers.OneCycle):
    """Changes Adam's first beta too, which is the default of torch."""

    kind, caught_by = "scheduler", "scales-every-group-alike"

    def build(self, optimizer):
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=self.total_steps + 1)
