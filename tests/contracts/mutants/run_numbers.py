"""Extensions, optimizers and schedules with one fault each that a short run does not show, and correct neighbours."""

import torch

from miniformer.kernel import Batch, LossTerm, hookimpl
from miniformer.kernel.recipes import OptimizerRecipe
from miniformer.train import optimizers, schedulers


class PatchesOnBuilding:
    """Building it replaces an initialisation of torch."""

    kind, caught_by = "extension", "making-one-changes-nothing"

    def __init__(self):
        torch.nn.init.normal_ = lambda tensor, *args, **given: torch.nn.init.zeros_(tensor)

    @hookimpl
    def callbacks(self):
        return []


class AddsAMethod:
    """Building it adds a method to tensors that hides theirs."""

    kind, caught_by = "extension", "making-one-changes-nothing"

    def __init__(self):
        torch.Tensor.softmax = lambda self, dim: torch.softmax(self.float(), dim)

    @hookimpl
    def callbacks(self):
        return []


class PatchesWhatIsNotUsed:
    """A function that the short run does not call stays replaced after the run."""

    kind, caught_by = "extension", "a-run-leaves-no-trace"

    @hookimpl
    def model_assembled(self, model):
        torch.nn.functional.hardswish = torch.nn.functional.silu


class UnmarkedBesideOthers:
    """One hook is marked, and the other is forgotten."""

    kind, caught_by = "extension", "hooks-fit-their-specification"

    @hookimpl
    def callbacks(self):
        return []

    def optimizer_groups(self, groups, model):
        groups[0]["weight_decay"] = 0.0


class DropsTokensInEvaluation:
    """Tokens are hidden in held-out data too."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self, batch):
        given = yield
        hidden = torch.rand(given.inputs.shape) < 0.5
        return Batch(given.inputs.masked_fill(hidden, 3), given.layout, given.targets)


class DrawsInEvaluation:
    """Random numbers are drawn, and used in training only, so that a measurement shifts those of the next step."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self, training):
        given = yield
        hidden = torch.rand(given.inputs.shape) < 0.5
        return Batch(given.inputs.masked_fill(hidden & training, 3), given.layout, given.targets)


class UnseededInTraining:
    """A generator of its own takes its seed from the clock."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    def __init__(self):
        self.generator = torch.Generator()
        self.generator.seed()

    @hookimpl(wrapper=True)
    def batch(self, training):
        given = yield
        noise = torch.randint(0, 2**30, given.inputs.shape, generator=self.generator)
        return Batch(noise, given.layout, given.targets) if training else given


class DropsTokens:
    """Correct: tokens are hidden in training, from torch's seed; a helper has the name of a hook."""

    @hookimpl(wrapper=True)
    def batch(self, training):
        given = yield
        if not training:
            return given
        hidden = torch.rand(given.inputs.shape) < 0.1
        return Batch(given.inputs.masked_fill(hidden, 3), given.layout, given.targets)

    @hookimpl(wrapper=True)
    def loss(self):
        term = yield
        self.metrics({"sum": term.sum})
        return LossTerm(term.sum, term.weight)

    def metrics(self, values):
        self.latest = values


class ByName(optimizers.AdamW):
    """What does not decay is found by names, such as `bias`, which say little."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def groups(self, model):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if name.endswith("bias") or "norm" in name or "table" in name]
        decayed = [p for name, p in named if not any(p is other for other in plain)]
        return [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]


class CountsSharedOnesTwice(optimizers.AdamW):
    """A parameter with two names is in both groups."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def groups(self, model):
        named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
        plain = [p for name, p in named if p.ndim < 2 or "table" in name]
        decayed = [p for name, p in named if p.ndim > 1 and "table" not in name]
        return [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]


class LosesVectors(optimizers.AdamW):
    """The groups are right, and the optimizer is built of the first alone."""

    kind, caught_by = "optimizer", "decays-as-its-groups-say"

    def build(self, groups):
        return super().build(groups[:1])


class ForgetsGroupRates(optimizers.AdamW):
    """The rate that a group comes with is lost."""

    kind, caught_by = "optimizer", "follows-the-rates-of-its-groups"

    def build(self, groups):
        return super().build([{name: group[name] for name in ("params", "weight_decay")} for group in groups])


class FirstRate(torch.optim.SGD):
    """Descent at the rate of the first group."""

    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=float(self.param_groups[0]["lr"]))
        return loss


class OneRate(OptimizerRecipe):
    """All groups move at the rate of the first."""

    kind, caught_by = "optimizer", "follows-the-rates-of-its-groups"

    def build(self, groups):
        return FirstRate(groups, lr=self.lr)


class Deaf(torch.optim.SGD):
    """Descent whose `step` takes a closure and does not call it."""

    def step(self, closure=None):
        return super().step()


class NeverAsks(OptimizerRecipe):
    """The closure, which computes the loss in a run, is never called."""

    kind, caught_by = "optimizer", "runs-its-closure"

    def build(self, groups):
        return Deaf(groups, lr=self.lr)


class SkipsSmallOnes(torch.optim.SGD):
    """Descent that leaves single numbers alone."""

    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim:
                    p.data.sub_(p.grad, alpha=float(group["lr"]))
        return loss


class LeavesNumbersOut(OptimizerRecipe):
    """Single numbers are in a group and never move."""

    kind, caught_by = "optimizer", "lowers-a-simple-loss"

    def build(self, groups):
        return SkipsSmallOnes(groups, lr=self.lr)


class TwiceAsLong(schedulers.Cosine):
    """The cosine is made for the steps of two runs."""

    kind, caught_by = "scheduler", "comes-to-its-end"

    def __init__(self, total_steps, warmup_steps):
        super().__init__(2 * total_steps, warmup_steps)


class CountsBatches(schedulers.Linear):
    """The decay is made for the batches, of which four make a step."""

    kind, caught_by = "scheduler", "comes-to-its-end"

    def after_warmup(self, step):
        return max(0.0, 1 - max(0, step - self.warmup_steps) / (3 * max(1, self.total_steps - self.warmup_steps)))


class LateByAStep(schedulers.Linear):
    """The first rate is used twice, and every later one comes a step late."""

    kind, caught_by = "scheduler", "warms-up-to-the-peak"

    def factor(self, step):
        return super().factor(max(0, step - 1))


class HalfForEver(schedulers.Linear):
    """Halves over the run, and would go on halving after it."""

    kind = "scheduler"

    def after_warmup(self, step):
        return 0.5 ** (max(0, step - self.warmup_steps) / max(1, self.total_steps))


class StableThenDown(schedulers.Linear):
    """Stays at the peak and falls to nothing in the last fifth of the steps after the warm-up."""

    kind = "scheduler"

    def after_warmup(self, step):
        last = max(1, (self.total_steps - self.warmup_steps) // 5)
        return min(1.0, max(0.0, (self.total_steps - step) / last))
