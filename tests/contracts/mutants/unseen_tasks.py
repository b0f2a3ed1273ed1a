"""Tasks and extensions that were written before the properties that have to find them (number 11)."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from miniformer.kernel import Batch, Layout, LossTerm, hookimpl
from miniformer.tasks.embedding import MeanReciprocalRank
from miniformer.tasks.language_modeling import CountingBytes
from miniformer.tasks.token_classification import Tags

from .task import Counting, Matching, Naming, Sorting, Tagging, Texts


class CutsLabelsFromTheirEnd(Tagging):
    """A cut sentence keeps its first tokens and its last labels (see transformers#18050)."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        tags = example.target
        return replace(example, tokens=example.tokens[:length], target=Tags(tags.pieces[-length:], tags.words))


class EndsACutText(Tagging):
    """The last token of a cut sentence is its end token, in place of the token whose label stays there (see trl#4698)."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        whole, cut = example.tokens, super().cut(example, length)
        return cut if len(whole) <= length else replace(cut, tokens=[*whole[:length - 1], whole[-1]])


class CutsOneTooMany(Naming):
    """The target is cut to the limit with its start token, so one token less is learnt, and at a limit of 1 none."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        return replace(example, tokens=example.tokens[:length], source=example.source[:length])


class TakesALimitOfOneForNone(Sorting):
    """A limit of 1 is read as no limit."""

    caught_by = "keeps-to-the-limit"

    def cut(self, example, length):
        return super().cut(example, length) if length > 1 else example


class RootOfTheError(Counting):
    """What is called `mse` is its root."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "mse": MeanSquaredError(squared=False)}


class NatsPerByte(CountingBytes):
    def compute(self):
        return super().compute() * math.log(2)


class CallsNatsBits(Texts):
    """What is called bits per byte is in nats."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "bits_per_byte": NatsPerByte(torch.tensor(tokenizer.byte_lengths()))}


class InverseOfTheMean(MeanReciprocalRank):
    def compute(self):
        return 1 / self.ranks().double().mean()


class InvertsTheMeanRank(Matching):
    """What is called the mean reciprocal rank is the reciprocal of the mean rank."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "mrr": InverseOfTheMean()}


class BalancesItsAccuracy(Sorting):
    """The accuracy is a mean over the labels, as torchmetrics has it by default, and not the share of right answers."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "accuracy": MulticlassAccuracy(len(self.labels))}


class OneMeanForF1(Sorting):
    """What is called `f1` is over all answers together, and so the accuracy once more."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "f1": MulticlassF1Score(len(self.labels), average="micro")}


class CountsRowsForTokens(Naming):
    """Its accuracy is a mean of the rows' accuracies, so tokens of short answers count more than others."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "accuracy": MeanMetric()}

    def update(self, metrics, hidden, head, batch, loss):
        super().update({**metrics, "accuracy": MeanMetric()}, hidden, head, batch, loss)
        following = batch.targets["following"]
        right = ((head(hidden).argmax(dim=-1) == following) & (following >= 0)).sum(dim=1)
        metrics["accuracy"].update(right / (following >= 0).sum(dim=1).clamp(min=1))


class PadsItsExamples(Sorting):
    """Padding is appended to the examples themselves, so a second batch of them reads it as text."""

    caught_by = "leaves-its-data-alone"

    def collate(self, examples):
        batch = super().collate(examples)
        for example in examples:
            example.tokens.extend([0] * (batch.inputs.shape[1] - len(example.tokens)))
        return batch


class WeighsBySomeTokens(Tagging):
    """The loss of a batch without a label is NaN, since it is a mean that is multiplied by its weight (see torchtune#2341)."""

    caught_by = "rows-without-targets-count-nothing"

    def loss(self, hidden, head, batch):
        labels = batch.targets["label"]
        term = super().loss(hidden, head, batch)
        return LossTerm(term.sum / term.weight * (labels >= 0).sum(), term.weight)


class PatchesAnInitialiser:
    """Building it puts another function in the place of one of torch's initialisers, for all who come later."""

    kind, caught_by = "extension", "making-one-changes-nothing"

    def __init__(self):
        dirac = torch.nn.init.dirac_
        torch.nn.init.dirac_ = lambda tensor, groups=1: dirac(tensor, groups).mul_(0.5)

    @hookimpl
    def callbacks(self):
        return []


class PatchesAnActivation:
    """An activation that the trial run does not use is faster and less exact after any run with it (as in functorch#900)."""

    kind, caught_by = "extension", "a-run-leaves-no-trace"

    @hookimpl
    def model_assembled(self, model):
        mish = F.mish
        F.mish = lambda x, inplace=False: mish(x.bfloat16()).to(x.dtype)


class PatchesALayer:
    """After any run with it, new convolutions have no bias."""

    kind, caught_by = "extension", "a-run-leaves-no-trace"

    @hookimpl
    def callbacks(self):
        made = torch.nn.Conv3d.__init__
        torch.nn.Conv3d.__init__ = lambda self, *sizes, **options: made(self, *sizes, **{**options, "bias": False})
        return []


class HidesTokensInEvaluation:
    """Tokens are hidden at random whether the model learns or is measured."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self):
        batch = yield
        hidden = torch.rand(batch.inputs.shape, device=batch.inputs.device) < 0.1
        return Batch(batch.inputs.masked_fill(hidden, 0), batch.layout, batch.targets, batch.source)


class TurnsTheRowsOfAnEvaluation:
    """Rows of a batch to be measured come in the opposite order, and so do predictions."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self, training):
        batch = yield
        if training:
            return batch
        rows = torch.arange(len(batch.inputs) - 1, -1, -1)
        targets = {name: value[rows] if len(value) == len(rows) else value for name, value in batch.targets.items()}
        return Batch(batch.inputs[rows], batch.layout.rows(rows), targets, batch.source)


class CutsAnEvaluationInPlace:
    """The last token of each row to be measured is overwritten in place."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self, training):
        batch = yield
        if not training:
            batch.inputs[:, -1] = 0
        return batch


class PacksAnEvaluationIntoOneText:
    """The texts that share a row to be measured are taken for one."""

    kind, caught_by = "extension", "evaluates-what-it-is-given"

    @hookimpl(wrapper=True)
    def batch(self, training):
        batch = yield
        one = batch.layout if training else Layout.from_documents(batch.layout.real.long())
        return Batch(batch.inputs, one, batch.targets, batch.source)
