"""Tasks whose cuts, metrics or data are wrong in one way, and correct neighbours of them that look unusual."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from miniformer.kernel import Batch, LossTerm
from miniformer.tasks.metrics import LossRatio
from miniformer.tasks.token_classification import Tags

from . import task as parents


class LosesTheLastToken(parents.Sorting):
    """A text of just as many tokens as may be is cut by one."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        return example if len(example.tokens) < length else replace(example, tokens=example.tokens[:max(1, length - 1)])


class CutsItsLabelsFromTheLeft(parents.Tagging):
    """The first words are kept, with the labels of the last."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        pieces, words = example.target
        return replace(example, tokens=example.tokens[:length], target=Tags(pieces[-length:], words))


class EndsWhereItWasCut(parents.Naming):
    """The end token of a target is kept, and the token before it is said to be the last."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        shorter = super().cut(example, length)
        lost = len(shorter.tokens) < len(example.tokens)
        return replace(shorter, tokens=[*shorter.tokens[:-1], example.tokens[-1]]) if lost else shorter


class OtherLabelWhenCut(parents.Counting):
    """The number of a text that was cut is 0."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        shorter = super().cut(example, length)
        return replace(shorter, target=0.0) if len(shorter.tokens) < len(example.tokens) else shorter


class CutsInPlace(parents.Tagging):
    """The example itself is shortened."""

    caught_by = "a-cut-keeps-the-targets"

    def cut(self, example, length):
        del example.tokens[length:]
        del example.target.pieces[length:]
        return example


class CutsNoQuestion(parents.Sorting):
    """Texts with a label are cut, and those to be predicted are not."""

    caught_by = "keeps-to-the-limit"

    def cut(self, example, length):
        return example if example.target is None else super().cut(example, length)


class DividesByItsTargets(parents.Texts):
    """The loss is divided by the number of targets and multiplied by it again, and a text of one token has none."""

    caught_by = "rows-without-targets-count-nothing"

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return LossTerm(term.sum / term.weight * term.weight, term.weight)


class ZeroWithoutGradient(parents.Texts):
    """The loss of a batch without targets is a new zero."""

    caught_by = "rows-without-targets-count-nothing"

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return term if term.weight else LossTerm(hidden.new_zeros(()), term.weight)


class SortsTheWords(parents.Tagging):
    """Words are sorted in the record itself, labels with them."""

    caught_by = "leaves-its-data-alone"

    def encode(self, record, tokenizer):
        pairs = sorted(zip(record.tokens, record.labels, strict=True))
        record.tokens[:], record.labels[:] = map(list, zip(*pairs, strict=True))
        return super().encode(record, tokenizer)


class ReplacesPadding(parents.Texts):
    """The loss writes 0 over the labels of padding, in the batch that metrics read after it."""

    caught_by = "leaves-its-data-alone"

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        batch.targets["following"][~batch.layout.real] = 0
        return term


class NormalisesInPlace(parents.Sorting):
    """The hidden states that others read are scaled by the loss."""

    caught_by = "leaves-its-data-alone"

    def loss(self, hidden, head, batch):
        return super().loss(hidden.mul_(0.5) if not hidden.requires_grad else hidden, head, batch)


class NoisyLabels(parents.Counting):
    """Noise on the targets is drawn in evaluation too, from the random numbers of the process."""

    caught_by = "leaves-its-data-alone"

    def loss(self, hidden, head, batch):
        value = batch.targets["value"]
        noisy = Batch(batch.inputs, batch.layout, {"value": value + 0.01 * torch.randn(value.shape)})
        return super().loss(hidden, head, noisy)


class SmoothsInEvaluation(parents.Sorting):
    """Labels are smoothed where gradients are recorded, instead of where the model trains."""

    caught_by = "leaves-its-data-alone"

    def loss(self, hidden, head, batch):
        scores, label = head.summary(hidden, batch.layout), batch.targets["label"]
        smoothing = 0.1 if torch.is_grad_enabled() else 0.0
        return LossTerm(F.cross_entropy(scores, label, reduction="sum", label_smoothing=smoothing), torch.tensor(len(label)))


class PatchesSoftmax(parents.Sorting):
    """A function of torch is replaced when the first batch is measured."""

    caught_by = "leaves-its-data-alone"

    def update(self, metrics, hidden, head, batch, loss):
        softmax = F.softmax
        F.softmax = lambda x, *args, **given: softmax(x.float(), *args, **given)
        super().update(metrics, hidden, head, batch, loss)


class MacroCalledAccuracy(parents.Sorting):
    """The mean of each label's share is called accuracy."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {"accuracy": MulticlassAccuracy(len(self.labels), average="macro")}


class RootCalledMse(parents.Counting):
    """The root of the mean square is called the mean square."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        metrics = super().metrics(tokenizer)
        metrics["mse"].squared = False
        return metrics


class Remembers(Metric):
    """A share whose counts belong to the class."""

    counts = [0, 0]

    def update(self, predicted, label):
        self.counts[0] += int((predicted == label).sum())
        self.counts[1] += len(label)

    def compute(self):
        return torch.tensor(self.counts[0] / self.counts[1])


class NeverForgets(parents.Sorting):
    """The accuracy of a pass counts the rows of all passes before it."""

    caught_by = "metrics-do-not-hang-on-batching"

    def metrics(self, tokenizer):
        return {"accuracy": Remembers()}


class TwoToTheNats(LossRatio):
    """A perplexity with the wrong base."""

    def compute(self):
        return 2 ** super().compute()


class PerplexityOfBits(parents.Texts):
    """Nats are taken for bits."""

    caught_by = "metrics-are-what-they-are-called"

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "perplexity": TwoToTheNats()}


class ShiftsItsAccuracy(parents.Naming):
    """The loss is right, and accuracy compares each prediction with the token after the next."""

    caught_by = "metrics-are-what-they-are-called"

    def update(self, metrics, hidden, head, batch, loss):
        super().update({**metrics, "accuracy": MeanMetric()}, hidden, head, batch, loss)
        following = batch.targets["following"].roll(-1, dims=1)
        metrics["accuracy"].update((head(hidden).argmax(dim=-1) == following)[following >= 0].float())


class Margin(Metric):
    """How far the right label's probability is from 1."""

    higher_is_better = True  # which is the fault: 0 is best

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, missing):
        self.total += missing.sum().float()
        self.count += len(missing)

    def compute(self):
        return self.total / self.count


class UpsideDown(parents.Sorting):
    """A metric of its own declares the wrong direction."""

    caught_by = "better-predictions-score-better"

    def metrics(self, tokenizer):
        return {"margin": Margin()}

    def update(self, metrics, hidden, head, batch, loss):
        scores = head.summary(hidden, batch.layout).softmax(dim=-1)
        metrics["margin"].update(1 - scores.gather(1, batch.targets["label"][:, None])[:, 0])


class SaysOtherLabels(parents.Sorting):
    """Outputs are named in the opposite order when predictions are written."""

    caught_by = "predicts-what-it-learns"

    def predict(self, hidden, head, batch):
        other = dict(zip(self.labels, reversed(self.labels), strict=True))
        return [{**one, "label": other[one["label"]]} for one in super().predict(hidden, head, batch)]


class PredictsDeviations(parents.Counting):
    """Predictions are in standard deviations, and the records are not."""

    caught_by = "predicts-what-it-learns"

    def predict(self, hidden, head, batch):
        return [{"value": (one["value"] - self.mean) / self.std} for one in super().predict(hidden, head, batch)]


class KeepsTheEnd(parents.Sorting):
    """A long text keeps its last tokens, where letters have their signature."""

    def cut(self, example, length):
        return replace(example, tokens=example.tokens[-length:])


class KeepsBothEnds(parents.Sorting):
    """A long text loses its middle."""

    def cut(self, example, length):
        tokens = example.tokens
        kept = [*tokens[:length - length // 2], *tokens[len(tokens) - length // 2:]]
        return example if len(tokens) <= length else replace(example, tokens=kept)


class TagsTheEnd(parents.Tagging):
    """A long sentence keeps its last words, with their labels."""

    def cut(self, example, length):
        pieces, words = example.target
        return replace(example, tokens=example.tokens[-length:], target=Tags(pieces[-length:], words))


class SmoothsInTraining(parents.Sorting):
    """Labels are smoothed while the model trains, and metrics of its own are added."""

    def metrics(self, tokenizer):
        return {**super().metrics(tokenizer), "surprise": MeanMetric()}

    def loss(self, hidden, head, batch):
        scores, label = head.summary(hidden, batch.layout), batch.targets["label"]
        smoothing = 0.1 if head.training else 0.0
        return LossTerm(F.cross_entropy(scores, label, reduction="sum", label_smoothing=smoothing), torch.tensor(len(label)))

    def update(self, metrics, hidden, head, batch, loss):
        super().update({name: metric for name, metric in metrics.items() if name != "surprise"}, hidden, head, batch, loss)
        metrics["surprise"].update(loss.sum / loss.weight, loss.weight)


class AbsoluteErrors(parents.Counting):
    """The loss is the absolute error, which has the same gradient however far off a number is."""

    def loss(self, hidden, head, batch):
        right = batch.targets["value"]
        predicted = head.summary(hidden, batch.layout)[:, 0]
        return LossTerm((predicted - right).abs().sum(), torch.tensor(len(right)))
