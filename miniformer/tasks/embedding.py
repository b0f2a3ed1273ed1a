"""`embedding`: a vector for each text, such that texts that belong together have similar vectors, with an encoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .collate import padded
from .losses import full_precision
from .metrics import widest


class AnchorInput(BaseModel):
    """A text to embed."""

    anchor: str


class PairRecord(AnchorInput):
    """Two texts that belong together."""

    positive: str


class Embedding(Task):
    """Map texts that belong together to similar vectors, with an encoder, by contrast with the rest of the batch.

    The loss is InfoNCE (van den Oord et al. 2018, arXiv:1807.03748), averaged over two questions: which positive of the batch
    belongs to an anchor, and which anchor to a positive. Texts equal to the right one do not count as wrong answers.
    The loss of a pair depends on the rest of its batch: a larger `batch_size` makes the task harder. Accumulating gradients
    over several batches does not, and their losses do not add up to the loss of one large batch.

    Args:
        size: elements of the vectors.
        temperature: cosine similarities are divided by it.
    """

    Record: ClassVar[type[BaseModel]] = PairRecord
    Input: ClassVar[type[BaseModel] | None] = AnchorInput
    head: ClassVar[str] = "embedding"
    additive: ClassVar[bool] = False

    def __init__(self, *, size: Annotated[int, Field(ge=1)] = 128,
                 temperature: Annotated[float, Field(gt=0)] = 0.1) -> None:
        self.size, self.temperature = size, temperature

    def stdlib(self) -> Iterable[tuple[str, PairRecord]]:
        """Docstrings of functions with the functions' names."""
        return ((where, PairRecord(anchor=text, positive=name)) for where, name, text in stdlib.described())

    def texts(self, record: PairRecord) -> Iterator[str]:
        yield record.anchor
        yield record.positive

    def n_outputs(self, vocab_size: int) -> int:
        return self.size

    def encode(self, record: PairRecord, tokenizer: Tokenizer) -> Example:
        return Example(_ids(record, "anchor", tokenizer), _ids(record, "positive", tokenizer))

    def question(self, record: AnchorInput, tokenizer: Tokenizer) -> Example:
        return Example(_ids(record, "anchor", tokenizer))

    def cut(self, example: Example, length: int) -> Example:
        positive = None if example.target is None else example.target[:length]
        return replace(example, tokens=example.tokens[:length], target=positive)

    def remarks(self, split: Split, name: str) -> Iterator[str]:
        if name != "training" and len({tuple(example.target) for example in split.examples}) < 2:
            yield (f"the {name} records have one positive, and no other to tell it from, so their loss is 0 and every other "
                   "figure 1 whatever a model says")

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Rows of the N anchors, then of the N positives if they are known. Target `text` is one number for equal texts."""
        pairs = [Example(e.target) for e in examples if e.target is not None]
        tokens, layout = padded([*examples, *pairs])
        # a digest numbers equal texts alike in every batch and process, which Python's `hash` of strings would not
        texts = [int.from_bytes(hashlib.blake2b(repr(list(e.tokens)).encode(), digest_size=8).digest(), signed=True)
                 for e in [*examples, *pairs]]
        return Batch(tokens, layout, {"text": torch.tensor(texts).view(1 + bool(pairs), -1)})

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """The mean of both directions, in nats, summed over the pairs; the weight is the number of pairs."""
        anchors_NO, positives_NO = full_precision(head.summary(hidden, batch.layout)).chunk(2)
        scores_NN = anchors_NO @ positives_NO.T / self.temperature
        right_N = torch.arange(len(scores_NN), device=scores_NN.device)
        # anchors look for positives along the rows, and positives for anchors along the columns
        anchor_texts_N, positive_texts_N = batch.targets["text"]
        forward_NN = scores_NN.masked_fill(_equal_others(positive_texts_N), -math.inf)
        backward_NN = scores_NN.T.masked_fill(_equal_others(anchor_texts_N), -math.inf)
        forward = F.cross_entropy(forward_NN, right_N, reduction="sum")
        backward = F.cross_entropy(backward_NN, right_N, reduction="sum")
        return LossTerm((forward + backward) / 2, torch.tensor(len(right_N), device=right_N.device))

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        return {"recall_at_1": RecallAt(1), "recall_at_10": RecallAt(10), "mrr": MeanReciprocalRank()}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        anchors_NO, positives_NO = full_precision(head.summary(hidden, batch.layout)).chunk(2)
        for metric in metrics.values():
            metric.update(anchors_NO, positives_NO, batch.targets["text"][1])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        count = len({tuple(example.target) for example in held_out.examples})
        return {"any order": {"recall_at_1": 1 / count, "recall_at_10": min(1.0, 10 / count),
                              "mrr": sum(1 / rank for rank in range(1, count + 1)) / count}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The vector of each anchor, of length 1."""
        vectors = full_precision(head.summary(hidden, batch.layout))[:batch.targets["text"].shape[1]]
        return [{"embedding": [round(x, 6) for x in vector]} for vector in vectors.tolist()]


class PairRanks(Metric):
    """The rank of each pair's positive among all different positives so far, by similarity to the anchor."""

    higher_is_better = True
    anchors: list[Tensor]
    positives: list[Tensor]
    texts: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("anchors", "positives", "texts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, anchors: Tensor, positives: Tensor, texts: Tensor) -> None:
        """Add pairs: vectors `[N, O]` and `[N, O]`, and a number for each positive that equal texts share."""
        self.anchors.append(anchors.detach())
        self.positives.append(positives.detach())
        self.texts.append(texts)

    def ranks(self) -> Tensor:
        """Ranks `[N]`, from 1. A tie counts against the model: otherwise one vector for all texts would look good."""
        anchors_NO, positives_NO, texts_N = map(dim_zero_cat, (self.anchors, self.positives, self.texts))
        texts_C, which_N = torch.unique(texts_N, return_inverse=True)
        candidates_CO = positives_NO.new_zeros(len(texts_C), positives_NO.shape[1])
        candidates_CO[which_N] = positives_NO
        # in parts, since N x C scores may not fit in memory
        parts = zip(torch.split(anchors_NO, 1024), torch.split(which_N, 1024), strict=True)
        scores = ((part_NO @ candidates_CO.T, which_N[:, None]) for part_NO, which_N in parts)
        return torch.cat([(scores_NC >= scores_NC.gather(1, which_N1)).sum(dim=1) for scores_NC, which_N1 in scores])


class RecallAt(PairRanks):
    """The share of anchors whose positive is among the `k` nearest."""

    def __init__(self, k: int, **options: Any) -> None:
        super().__init__(**options)
        self.k = k

    def compute(self) -> Tensor:
        ranks = self.ranks()
        return (ranks <= self.k).to(widest(ranks.device)).mean()


class MeanReciprocalRank(PairRanks):
    """The mean of 1 / rank."""

    def compute(self) -> Tensor:
        ranks = self.ranks()
        return (1 / ranks.to(widest(ranks.device))).mean()


def _equal_others(texts_N: Tensor) -> Tensor:
    """`[N, N]` bool, True where a text other than the right one is equal to it."""
    equal_NN = texts_N[:, None] == texts_N
    return equal_NN.fill_diagonal_(False)


def _ids(record: Any, field: str, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode_whole(getattr(record, field))
    if not ids:
        raise ValueError(f"field {field!r} has no tokens; expected some text")
    return ids
