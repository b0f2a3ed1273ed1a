"""Extensions with one fault each, and a healthy one."""

from typing import Annotated

import torch
from pydantic import Field

from miniformer.kernel import LossTerm, hookimpl


class Scaled:
    """Scales the loss."""

    def __init__(self, *, by: Annotated[float, Field(gt=0)] = 2.0):
        self.by = by

    @hookimpl(wrapper=True)
    def loss(self):
        term = yield
        return LossTerm(term.sum * self.by, term.weight)


class WrongArguments:
    """A hook has an argument that no run passes."""

    kind, caught_by = "extension", "hooks-fit-their-specification"

    @hookimpl
    def optimizer_groups(self, optimizer):
        optimizer.clear()


class Misspelt:
    """A hook that no run has."""

    kind, caught_by = "extension", "hooks-fit-their-specification"

    @hookimpl
    def model_assembeld(self, model):
        model.requires_grad_(False)


class Unmarked:
    """Its hook is not marked as one, and is never called."""

    kind, caught_by = "extension", "hooks-fit-their-specification"

    def model_assembled(self, model):
        model.requires_grad_(False)


class Seeds(Scaled):
    """Building it sets torch's seed, for its own random numbers."""

    kind, caught_by = "extension", "making-one-changes-nothing"

    def __init__(self, *, seed: int = 23):
        super().__init__()
        torch.manual_seed(seed)
        self.noise = torch.rand(8)


class Hastens(Scaled):
    """Building it sets a precision for the whole process."""

    kind, caught_by = "extension", "making-one-changes-nothing"

    def __init__(self):
        super().__init__()
        torch.set_float32_matmul_precision("medium")


class ForgetsToReturn(Scaled):
    """A wrapper notes the loss and does not pass it on."""

    kind, caught_by = "extension", "a-run-with-it-ends"

    @hookimpl(wrapper=True)
    def loss(self):
        term = yield
        self.seen = float(term.sum.detach())


class FlattensSoftmax(Scaled):
    """The loss of its run is changed by changing torch, for every run after it."""

    kind, caught_by = "extension", "a-run-leaves-no-trace"

    @hookimpl
    def model_assembled(self, model):
        softmax = torch.log_softmax
        torch.log_softmax = lambda x, *args, **given: softmax(x / 2, *args, **given)
