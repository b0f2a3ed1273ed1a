"""`language-modeling`: predict the next token of a document, with a causal decoder."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor
from torchmetrics import Metric

from miniformer.data import stdlib
from miniformer.data.prepare import token_lengths
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .baselines import unigram
from .collate import bytes_of, packed
from .losses import next_tokens, row_losses
from .metrics import BitsPerByte, Perplexity


class TextRecord(BaseModel):
    """One document."""

    text: str


class LanguageModeling(Task):
    """Predict the next token of a document, with a causal decoder. Documents share rows, and never attend to each other."""

    Record: ClassVar[type[BaseModel]] = TextRecord
    causal: ClassVar[bool] = True
    head: ClassVar[str] = "lm"
    packs: ClassVar[bool] = True
    with_source: ClassVar[str | None] = "prefix-lm"

    def stdlib(self) -> Iterable[tuple[str, TextRecord]]:
        return ((path, TextRecord(text=text)) for path, text in stdlib.sources())

    def texts(self, record: TextRecord) -> Iterator[str]:
        yield record.text

    def n_outputs(self, vocab_size: int) -> int:
        return vocab_size

    def encode(self, record: TextRecord, tokenizer: Tokenizer) -> Example:
        ids, counts = tokenizer.encode(record.text), tokenizer.byte_counts(record.text)
        if counts is not None and len(counts) != len(ids):  # of a tokenizer with ids of its own
            counts = None
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return Example([*ids, *end], byte_counts=None if counts is None else [*counts, *(0 for _ in end)])

    def unmeasurable(self, examples: Sequence[Example]) -> str | None:
        return None if max(token_lengths(examples), default=0) > 1 else "no text has a second token to predict"

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens, layout, following = packed(examples)
        return Batch(tokens, layout, {"following": following, **bytes_of([row.byte_counts for row in examples])})

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        return next_tokens(hidden, head, batch.targets["following"])

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        lengths = torch.tensor(tokenizer.byte_lengths())
        return {"perplexity": Perplexity(), "bits_per_byte": CountingBytes(lengths)}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        metrics["perplexity"].update(loss.sum, loss.weight)
        metrics["bits_per_byte"].update(loss.sum, batch.targets["following"], batch.targets.get("bytes"))

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        text = "\n".join(record.text for record in held_out.records).encode()
        # no window longer than the text: the size is the same, and the whole one would take 674 MB
        window = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": min(max(len(text), 2**12), 2**26)}
        squeezed = len(lzma.compress(text, filters=[window]))
        return {"unigram": unigram(train, held_out, tokenizer),
                "xz -9": {"bits_per_byte": 8 * squeezed / max(1, len(text))}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The summed loss of each row in nats, and the number of tokens in that sum."""
        return row_losses(hidden, head, batch.targets["following"])


class CountingBytes(BitsPerByte):
    """Bits per byte, computed from the predicted tokens `[B, T]`, whose bytes are counted here unless a batch says them."""

    lengths: Tensor

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.register_buffer("lengths", lengths, persistent=False)

    def update(self, nats: Tensor, following: Tensor, byte_counts: Tensor | None = None) -> None:
        super().update(nats, (self.lengths[following[following >= 0]] if byte_counts is None else byte_counts).sum())
