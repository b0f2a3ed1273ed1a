"""`token-classification`: a label for each word of a sentence, with an encoder, predicted at the word's first token."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .collate import padded
from .labels import Choice, Label, label_remarks, learn_labels

NOTHING, UNKNOWN = -2, -1
"""Targets without a label: of a token that is not the first of a word, and of a word whose label is not known."""
KINDS = {tokenize.NAME: "name", tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator",
         tokenize.COMMENT: "comment"}


class WordsInput(BaseModel):
    """The words of a sentence."""

    tokens: Annotated[list[str], Field(min_length=1)]


class TaggedRecord(WordsInput):
    """The words of a sentence and a label for each, whole numbers or strings."""

    labels: list[Label]

    @model_validator(mode="after")
    def _one_each(self) -> TaggedRecord:
        if len(self.labels) != len(self.tokens):
            raise ValueError(f"{len(self.labels)} labels for {len(self.tokens)} tokens; expected one for each")
        return self


class Tags(NamedTuple):
    """The targets of the T tokens of a sentence, and the number of its words, including any that are cut off."""

    pieces: list[int]
    words: int


class TokenClassification(Task):
    """Predict a label for each word of a sentence, with an encoder.

    Args:
        labels: the labels, in the order of the outputs; empty: all labels of the training records, sorted.
    """

    Record: ClassVar[type[BaseModel]] = TaggedRecord
    Input: ClassVar[type[BaseModel] | None] = WordsInput
    head: ClassVar[str] = "token-classification"

    def __init__(self, *, labels: tuple[Label, ...] = ()) -> None:
        self.labels, self.index = labels, Choice(labels)

    def stdlib(self) -> Iterable[tuple[str, TaggedRecord]]:
        """The tokens of short functions, labelled with their kinds: keyword, name, number, string, operator, comment."""
        for where, _, source in stdlib.functions():
            kinds = list(token_kinds(source))
            yield where, TaggedRecord(tokens=[token for token, _ in kinds], labels=[kind for _, kind in kinds])

    def fit(self, records: Iterable[TaggedRecord]) -> Mapping[str, Any]:
        return {} if self.labels else {"labels": learn_labels(label for record in records for label in record.labels)}

    def remarks(self, split: Split, name: str) -> Iterator[str]:
        counts = Counter(label for record in split.records for label in record.labels)
        return label_remarks(self.labels, counts, {frozenset([label]) for label in counts}, name)

    def texts(self, record: TaggedRecord) -> Iterator[str]:
        return (f" {word}" for word in record.tokens)

    def n_outputs(self, vocab_size: int) -> int:
        return len(self.labels)

    def encode(self, record: TaggedRecord, tokenizer: Tokenizer) -> Example:
        return self._example(record.tokens, [self.index[label] for label in record.labels], tokenizer)

    def question(self, record: WordsInput, tokenizer: Tokenizer) -> Example:
        return self._example(record.tokens, [UNKNOWN] * len(record.tokens), tokenizer)

    def cut(self, example: Example, length: int) -> Example:
        tags: Tags = example.target
        return replace(example, tokens=example.tokens[:length], target=Tags(tags.pieces[:length], tags.words))

    def examples(self, record: TaggedRecord, tokenizer: Tokenizer, limit: int | None) -> Sequence[Example]:
        if limit is not None and limit <= (marks := len(tokenizer.encode(""))):
            raise ValueError(f"max_seq_len {limit} has no room for a word; expected at least {marks + 1}")
        return super().examples(record, tokenizer, limit)

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens, layout = padded(examples)
        labels = torch.full(layout.shape, NOTHING)
        for row, example in zip(labels, examples, strict=True):
            row[:len(example.tokens)] = torch.tensor(example.target.pieces)
        return Batch(tokens, layout, {"label": labels, "words": torch.tensor([e.target.words for e in examples])})

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """Cross-entropy, in nats; the weight is the number of words."""
        labels_BT = batch.targets["label"]
        return LossTerm(head.cross_entropy(hidden, labels_BT), (labels_BT >= 0).sum())

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        n = len(self.labels)
        return {"accuracy": MulticlassAccuracy(n, average="micro"), "f1": MulticlassF1Score(n, average="macro")}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        labels_BT = batch.targets["label"]
        if not (labels_BT >= 0).any():  # all words are cut off, and the metrics fail on no words
            return
        predicted_N = head(hidden, labels_BT >= 0).argmax(dim=-1)
        for metric in metrics.values():
            metric.update(predicted_N, labels_BT[labels_BT >= 0])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """Give each word the commonest label of the training records, or the one that it has there most often.

        Words that were cut off do not count, as the model is not measured on them either.
        """
        train_pairs, pairs = ([pair for record, example in zip(*split, strict=True) for pair in _kept(record, example)]
                              for split in (train, held_out))
        common = Counter(label for _, label in train_pairs).most_common(1)[0][0]
        label_counts: dict[str, Counter[Label]] = {}
        for word, label in train_pairs:
            label_counts.setdefault(word, Counter())[label] += 1
        usual = {word: counts.most_common(1)[0][0] for word, counts in label_counts.items()}
        common_hits = sum(label == common for _, label in pairs)
        usual_hits = sum(label == usual.get(word, common) for word, label in pairs)
        return {f"always {common!r}": {"accuracy": common_hits / len(pairs)},
                "each word's usual": {"accuracy": usual_hits / len(pairs)}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The label of each word; None for words that were cut off."""
        starts_word_BT = batch.targets["label"] != NOTHING
        outputs = iter(head(hidden, starts_word_BT).argmax(dim=-1).tolist())  # of all rows, one after the other
        rows = [[self.labels[next(outputs)] for _ in range(n)] for n in starts_word_BT.sum(dim=1).tolist()]
        return [{"labels": labels + [None] * (words - len(labels))}
                for labels, words in zip(rows, batch.targets["words"].tolist(), strict=True)]

    def _example(self, words: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer) -> Example:
        """The tokens of all words, between start and end tokens. A space is put before each word, as inside a sentence."""
        start = tokenizer.encode("")
        tokens, pieces = list(start), [NOTHING] * len(start)
        for place, (word, label) in enumerate(zip(words, labels, strict=True), start=1):
            ids = tokenizer.encode(f" {word}")[len(start):]
            if not ids:
                raise ValueError(f"field 'tokens': token {place}, {word!r}, is nothing to this tokenizer")
            tokens += ids
            pieces += [label, *[NOTHING] * (len(ids) - 1)]
        end = tokenizer.encode_whole("")[len(start):]
        return Example([*tokens, *end], Tags([*pieces, *[NOTHING] * len(end)], len(words)))


def _kept(record: TaggedRecord, example: Example) -> Iterator[tuple[str, Label]]:
    """The words of a record, with their labels, without those that are cut off in its example."""
    count = sum(piece != NOTHING for piece in example.target.pieces)
    return zip(record.tokens[:count], record.labels[:count], strict=True)


def token_kinds(source: str) -> Iterator[tuple[str, str]]:
    """The tokens of Python source and their kinds; line ends and indentation are left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in KINDS:
            yield token.string, "keyword" if keyword.iskeyword(token.string) else KINDS[token.type]
