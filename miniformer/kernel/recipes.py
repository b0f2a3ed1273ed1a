"""How a run is optimised: the interfaces of optimizers and schedulers, which are components like any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .interfaces import Norm


class OptimizerRecipe(ABC):
    """Makes a torch optimizer. Sizes: the run's `lr` and `weight_decay`.

    Class data:
        state_numbers: numbers that it keeps for each parameter, at least. A run that needs more memory than there is is
            refused before it reads its data.
    """

    state_numbers: ClassVar[int] = 0

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay = lr, weight_decay

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Sort the parameters into groups: weight decay for matrices, none for norms, biases and embeddings."""
        spared = {id(p) for module in model.modules() if isinstance(module, (Norm, nn.Embedding, nn.LayerNorm))
                  for p in module.parameters(recurse=False)}
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in trainable(model):
            (plain if parameter.ndim < 2 or id(parameter) in spared else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer over `groups`, each of which has a `weight_decay` of its own."""


class SchedulerRecipe(ABC):
    """Makes a learning-rate schedule, stepped once per optimizer step.

    Sizes: `total_steps` and `warmup_steps`, in optimizer steps.
    """

    def __init__(self, total_steps: int, warmup_steps: int) -> None:
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    @abstractmethod
    def build(self, optimizer: Optimizer) -> LRScheduler:
        """Make the schedule of `optimizer`, whose groups hold the peak learning rates."""


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that take gradients, shared ones once."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
