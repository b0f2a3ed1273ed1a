"""Tasks with one fault each, and the healthy tasks that they derive from, with a few embedded records."""

from dataclasses import replace

import torch
from pydantic import field_validator
from torchmetrics import MeanMetric

from miniformer.kernel import Batch, Layout, LossTerm
from miniformer.kernel.task import Source
from miniformer.tasks.classification import Classification, LabelledRecord
from miniformer.tasks.embedding import Embedding, PairRecord
from miniformer.tasks.language_modeling import LanguageModeling, TextRecord
from miniformer.tasks.losses import next_tokens
from miniformer.tasks.masked_lm import MaskedLanguageModeling
from miniformer.tasks.regression import Regression, ValuedRecord
from miniformer.tasks.seq2seq import PairRecord as Answered
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.token_classification import TaggedRecord, TokenClassification

THINGS = ("saw", "pear", "hammer", "plum", "screwdriver", "apple tree")


def sentences():
    """Texts of several lengths, each with its number and the thing that it is about."""
    return [(f"here:{n}", n, THINGS[n % 6], f"the {THINGS[n % 6]} {'is old ' * (n % 4)}no {n}") for n in range(24)]


class Sorting(Classification):
    """Tool or fruit."""

    kind = "task"

    def stdlib(self):
        return [(where, LabelledRecord(input=text, label=("tool", "fruit")[n % 2])) for where, n, _, text in sentences()]


class Texts(LanguageModeling):
    """The next token of short texts."""

    kind = "task"

    def stdlib(self):
        return [(where, TextRecord(text=text)) for where, _, _, text in sentences()]


class Gaps(MaskedLanguageModeling):
    """Hidden tokens of short texts."""

    kind = "task"

    def stdlib(self):
        return [(where, TextRecord(text=text)) for where, _, _, text in sentences()]


class Naming(Seq2Seq):
    """The thing that a text is about."""

    kind = "task"

    def stdlib(self):
        return [(where, Answered(source=text, target=thing)) for where, _, thing, text in sentences()]


class Tagging(TokenClassification):
    """Which words are short."""

    kind = "task"

    def stdlib(self):
        words = {where: text.split() for where, _, _, text in sentences()}
        return [(where, TaggedRecord(tokens=tokens, labels=["short" if len(token) < 4 else "long" for token in tokens]))
                for where, tokens in words.items()]


class Counting(Regression):
    """The number in a text."""

    kind = "task"

    def stdlib(self):
        return [(where, ValuedRecord(input=text, value=float(n))) for where, n, _, text in sentences()]


class Matching(Embedding):
    """Texts and the things that they are about."""

    kind = "task"

    def stdlib(self):
        return [(where, PairRecord(anchor=text, positive=f"{thing} {n}")) for where, n, thing, text in sentences()]


class ShiftsTwice(Texts):
    """Labels are shifted when a batch is made, and once more in the loss."""

    caught_by = "labels-are-shifted-once"

    def loss(self, hidden, head, batch):
        return next_tokens(hidden[:, :-1], head, batch.targets["following"][:, 1:])


class NeverShifts(Texts):
    """Each token is its own label."""

    caught_by = "labels-are-shifted-once"

    def loss(self, hidden, head, batch):
        return next_tokens(hidden, head, torch.where(batch.layout.real, batch.inputs, -1))


class MeanOfTheBatch(Sorting):
    """The sum of its loss is a mean already, with weight 1."""

    caught_by = "losses-add-up"

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return LossTerm(term.sum / term.weight, torch.ones_like(term.weight))


class HidesItsNeighbours(Matching):
    """Its loss depends on the other rows of the batch, and the class declares that it does not."""

    caught_by = "losses-add-up"
    additive = True


class DeniesThatItAddsUp(Sorting):
    """Its losses add up, and the class declares that they do not."""

    caught_by = "losses-add-up"
    additive = False


class CountsPadding(Tagging):
    """Labels are padded with a label."""

    caught_by = "padding-does-not-count"

    def collate(self, examples):
        batch = super().collate(examples)
        label = torch.where(batch.layout.real, batch.targets["label"], 0)
        return Batch(batch.inputs, batch.layout, {**batch.targets, "label": label})


class RightAboutPadding(Naming):
    """Accuracy is over all positions, of which padding is always right."""

    caught_by = "padding-does-not-count"

    def update(self, metrics, hidden, head, batch, loss):
        super().update({**metrics, "accuracy": MeanMetric()}, hidden, head, batch, loss)
        following = batch.targets["following"]
        metrics["accuracy"].update(((head(hidden).argmax(dim=-1) == following) | (following < 0)).float())


class ReadsTheLastColumn(Sorting):
    """The prediction of a row is read at the end of the longest row."""

    caught_by = "padding-does-not-count"

    def predict(self, hidden, head, batch):
        scores = head(hidden[:, -1:])[:, 0]
        return [{"label": self.labels[int(row.argmax())]} for row in scores]


class MeanOfMeans(Tagging):
    """The accuracy of each batch counts the same, whatever its size."""

    caught_by = "metrics-do-not-hang-on-batching"

    def metrics(self, tokenizer):
        return {"accuracy": MeanMetric()}

    def update(self, metrics, hidden, head, batch, loss):
        labels = batch.targets["label"]
        metrics["accuracy"].update((head(hidden, labels >= 0).argmax(dim=-1) == labels[labels >= 0]).float().mean())


class MetricsOfTheLastPass(Sorting):
    """Metrics are made once and never start anew."""

    caught_by = "metrics-do-not-hang-on-batching"

    def metrics(self, tokenizer):
        if not hasattr(self, "made"):
            self.made = super().metrics(tokenizer)
        return self.made


class PerplexityOfMeans(Texts):
    """Perplexity is computed from the mean loss of each batch."""

    caught_by = "metrics-match-the-loss"

    def update(self, metrics, hidden, head, batch, loss):
        super().update(metrics, hidden, head, batch, LossTerm(loss.sum / loss.weight, torch.ones_like(loss.weight)))


class LongestFirst(Sorting):
    """Rows are sorted by length, and their predictions are not sorted back."""

    caught_by = "predicts-every-row-in-order"

    def collate(self, examples):
        return super().collate(sorted(examples, key=lambda example: -len(example.tokens)))


class SilentWhenUnsure(Sorting):
    """A row whose label is not clear gets no prediction."""

    caught_by = "predicts-every-row-in-order"

    def predict(self, hidden, head, batch):
        return [one for one in super().predict(hidden, head, batch) if max(one["probabilities"].values()) > 0.9]


class PredictsTensors(Counting):
    """A prediction is a tensor, which no file can hold."""

    caught_by = "predicts-every-row-in-order"

    def predict(self, hidden, head, batch):
        return [{"value": torch.tensor(one["value"])} for one in super().predict(hidden, head, batch)]


class AnswerAtTheEnd(Sorting):
    """The label is a token at the end of the text."""

    caught_by = "answers-know-no-labels"

    def encode(self, record, tokenizer):
        example = super().encode(record, tokenizer)
        return replace(example, tokens=[*example.tokens, 5 + example.target])


class AnswerInTheBatch(Counting):
    """The value to be predicted replaces the first token."""

    caught_by = "answers-know-no-labels"

    def collate(self, examples):
        batch = super().collate(examples)
        if "value" in batch.targets:
            batch.inputs[:, 0] = (batch.targets["value"] * 10).long() % 50 + 5
        return batch


class AnswerInTheSource(Naming):
    """The target ends the source, as in a prompt with an example."""

    caught_by = "answers-know-no-labels"

    def encode(self, record, tokenizer):
        example = super().encode(record, tokenizer)
        return replace(example, source=[*tokenizer.encode(record.target), *example.source])


class DropsWords(Texts):
    """Some tokens are hidden, drawn from the random numbers of the whole process."""

    caught_by = "collates-the-same-each-time"

    def collate(self, examples):
        batch = super().collate(examples)
        return Batch(torch.where(torch.rand(batch.inputs.shape) < 0.1, 0, batch.inputs), batch.layout, batch.targets)


class LearnsInSecret(Counting):
    """Keeps what it learns as an attribute: a rebuilt task does not scale its values."""

    caught_by = "what-it-learnt-makes-it-again"

    def fit(self, records):
        learnt = dict(super().fit(records))
        self.mean, self.std = learnt["mean"], learnt["std"]
        return {}


class LearnsAgain(Counting):
    """Learns on top of what it has learnt, so a rebuilt task is another."""

    caught_by = "what-it-learnt-makes-it-again"

    def fit(self, records):
        learnt = dict(super().fit(records))
        return {**learnt, "mean": self.mean + 1.0}


class Prompted(LabelledRecord):
    """Adds a prompt to the text each time a record is read."""

    @field_validator("input")
    @classmethod
    def _prompt(cls, text):
        return f"tool or fruit? {text}"


class ReadsOtherRecords(Sorting):
    """A record is changed by reading it."""

    caught_by = "records-survive-json"
    Record = Prompted

    def stdlib(self):
        return [(where, Prompted(**record.model_dump())) for where, record in super().stdlib()]


class OtherWords(Sorting):
    """The baseline reports `acc`, and the metric is called `accuracy`."""

    caught_by = "baselines-speak-in-its-metrics"

    def baselines(self, train, held_out, tokenizer):
        return {name: {"acc": values["accuracy"]} for name, values in super().baselines(train, held_out, tokenizer).items()}


class NeverCuts(Sorting):
    """Ignores the limit on the length of examples."""

    caught_by = "keeps-to-the-limit"

    def examples(self, record, tokenizer, limit):
        return [self.encode(record, tokenizer)]


class OneLongText(Texts):
    """Texts that share a row are one text."""

    caught_by = "packing-changes-nothing"

    def collate(self, examples):
        batch = super().collate(examples)
        return Batch(batch.inputs, Layout.from_documents(batch.layout.real.long()), batch.targets)


class SaysTheNextText(Texts):
    """The label of the last token of a text is the first token of the next."""

    caught_by = "packing-changes-nothing"

    def collate(self, examples):
        batch = super().collate(examples)
        following = batch.inputs.roll(-1, dims=1).where(batch.layout.real & batch.layout.real.roll(-1, dims=1), -1)
        following[:, -1] = -1
        return Batch(batch.inputs, batch.layout, {"following": following})


class NeverReads(Naming):
    """The encoder is given padding."""

    caught_by = "the-source-is-read"

    def collate(self, examples):
        batch = super().collate(examples)
        source = Source(torch.zeros_like(batch.source.inputs), batch.source.layout)
        return Batch(batch.inputs, batch.layout, batch.targets, source)


class RewardsErrors(Sorting):
    """The sign of the loss is wrong, and its gradient with it."""

    caught_by = "a-few-steps-lower-the-loss"

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return LossTerm(2 * term.sum.detach() - term.sum, term.weight)


class Detached(Counting):
    """Its loss has no gradient."""

    caught_by = "a-few-steps-lower-the-loss"

    def loss(self, hidden, head, batch):
        return LossTerm(*(part.detach() for part in super().loss(hidden, head, batch)))
