"""The contracts of optimizers and schedulers: built-in recipes keep them, and so do common ones of other libraries.

Recipes with a fault, and the property that names it, are in mutants/recipes.py.
"""

import math

import depth
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from miniformer.contracts import check_component
from miniformer.kernel.recipes import OptimizerRecipe, SchedulerRecipe


class MomentumSGD(OptimizerRecipe):
    """Gradient descent with momentum."""

    def __init__(self, lr, weight_decay, *, nesterov: bool = False):
        super().__init__(lr, weight_decay)
        self.nesterov = nesterov

    def build(self, groups):
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=self.nesterov)


class TorchAdafactor(OptimizerRecipe):
    """torch's Adafactor."""

    def build(self, groups):
        return torch.optim.Adafactor(groups, lr=self.lr)


class InverseRoot(SchedulerRecipe):
    """The schedule of the first transformer (Vaswani 2017), scaled to the peak."""

    def build(self, optimizer):
        warmup = max(1, self.warmup_steps)
        return LambdaLR(optimizer, lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1))))


class LinearThenCosine(SchedulerRecipe):
    """torch's own linear warm-up and cosine, one after the other."""

    def build(self, optimizer):
        rise, rest = max(1, self.warmup_steps), max(1, self.total_steps - self.warmup_steps)
        return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=rise), CosineAnnealingLR(optimizer, rest)],
                            milestones=[rise])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "target"), [
    ("optimizer", "adamw"), ("optimizer", {"name": "adamw", "fused": False}), ("optimizer", MomentumSGD),
    ("optimizer", TorchAdafactor), ("scheduler", "none"), ("scheduler", "linear"), ("scheduler", "cosine"),
    ("scheduler", "onecycle"), ("scheduler", InverseRoot), ("scheduler", LinearThenCosine)], ids=str)
def test_a_healthy_recipe_breaks_no_promise(kind, target, seed):
    report = check_component(kind, target, seed=seed, examples=depth.examples(30))
    assert report.ok, report.explain()
    assert all(result.examples for result in report.results if result.property != "declared-abilities-are-checked")
