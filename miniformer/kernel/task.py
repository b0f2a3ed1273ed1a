"""The Task interface: a task owns its records, batches, loss, metrics and predictions.

Nothing else in miniformer knows what a label is. A task never divides by the size of its batch: it returns a sum and a
weight, and the trainer divides once, so that accumulation and data parallelism give the loss of the one big batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from .errors import DataError
from .interfaces import Head
from .layout import Layout

if TYPE_CHECKING:
    from torchmetrics import Metric


class Tokenizer(Protocol):
    """What a task needs of a tokenizer."""

    pad_id: int
    bos_id: int | None
    eos_id: int | None
    mask_id: int | None

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, the token that marks its start first."""

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text that does not go on; like `encode`, and the end token last if the tokenizer adds one."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""

    def byte_lengths(self) -> Sequence[int]:
        """UTF-8 bytes that each of the `vocab_size` tokens stands for; 0 for special ones."""


class LossTerm(NamedTuple):
    """A loss as a sum and the weight to divide it by."""

    sum: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One record ready for a batch.

    Attributes:
        tokens: T token ids, or features `[T, F]`.
        target: the answer, in the task's own form; None: of a record to be predicted.
        documents: T document numbers, in a row packed from several examples; None: one document.
        following: T ids, the token that follows each in its document, or -1; set in packed rows.
        source: S token ids for the encoder of a model that has encoder and decoder; `tokens` are the decoder's then.
        draw: decides all that is random about it. In training a function of seed, epoch and place; of held-out data 0.
    """

    tokens: Sequence[int] | Tensor
    target: Any = None
    documents: Tensor | None = None
    following: Tensor | None = None
    source: Sequence[int] | Tensor | None = None
    draw: int = 0


class Split(NamedTuple):
    """Records and the examples that they gave, in the same order; a record may give several."""

    records: Sequence[Any]
    examples: Sequence[Example]


class Source(NamedTuple):
    """What the encoder is given, where a model has encoder and decoder: `[B, S]` token ids, and where they sit."""

    inputs: Tensor
    layout: Layout


class Batch:
    """What a model is given, and what the task expects of it.

    Not a dataclass: Lightning takes those apart to convert what they hold, and cannot put a frozen one together again.

    Args:
        inputs: `[B, T]` token ids, or `[B, T, F]` features.
        layout: where they sit.
        targets: tensors that only the task reads.
        source: of a task that has one, what the encoder is given; the rest is the decoder's then.
    """

    __slots__ = ("inputs", "layout", "source", "targets")

    def __init__(self, inputs: Tensor, layout: Layout, targets: Mapping[str, Tensor], source: Source | None = None) -> None:
        self.inputs, self.layout, self.targets, self.source = inputs, layout, targets, source

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """The batch on another device."""
        source = self.source and Source(self.source.inputs.to(device, **kwargs), self.source.layout.to(device))
        return Batch(self.inputs.to(device, **kwargs), self.layout.to(device),
                     {name: value.to(device, **kwargs) for name, value in self.targets.items()}, source)


class Task(ABC):
    """What a model is trained to do. Sizes: none; options are the constructor's keyword-only parameters.

    Class data:
        Record: pydantic model of one JSONL line; its fields are the file's fields.
        causal: the direction of the model that it trains.
        head: the head that it takes unless the spec names one.
        packs: rows may be filled with several examples; otherwise each gets a row, padded.
        has_source: its batches have a source, so that it trains a model with encoder and decoder.
        with_source: the task that takes its place where such a model is asked for; none: no such model can be trained.
        Input: pydantic model of a line that a prediction is wanted for, without what is to be predicted; None: `Record`.
        additive: the losses of the parts of a batch add up to that of the whole.
    """

    Record: ClassVar[type[BaseModel]]
    Input: ClassVar[type[BaseModel] | None] = None
    causal: ClassVar[bool] = False
    head: ClassVar[str]
    packs: ClassVar[bool] = False
    has_source: ClassVar[bool] = False
    with_source: ClassVar[str | None] = None
    additive: ClassVar[bool] = True

    input_dim: int | None = None
    """Width of the features that it was fitted to; None: texts."""

    def stdlib(self) -> Iterable[tuple[str, Any]]:
        """Records, each with where it stands, from Python's standard library: what `--train-path stdlib` means."""
        raise DataError(f"{type(self).__name__} has no embedded data; give --train-path")

    def fit(self, records: Iterable[Any]) -> Mapping[str, Any]:
        """Options learnt from the training records, such as the labels that occur; they are saved with the run.

        The task itself stays as it is: it is made again of its options and of these.
        """
        return {}

    def fit_tokenizer(self, tokenizer: Tokenizer) -> Mapping[str, Any]:
        """Options learnt from the tokenizer, such as the id of a special token; saved like those of `fit`."""
        return {}

    @abstractmethod
    def texts(self, record: Any) -> Iterator[str]:
        """The texts of a record. A tokenizer is trained on them, and for `encode` they are tokenised ahead, many at a time."""

    @abstractmethod
    def n_outputs(self, vocab_size: int) -> int:
        """The width of the head."""

    @abstractmethod
    def encode(self, record: Any, tokenizer: Tokenizer) -> Example:
        """The example that a record gives."""

    def examples(self, record: Any, tokenizer: Tokenizer, limit: int | None) -> Sequence[Example]:
        """The examples that a record gives, each of at most `limit` tokens: that of `encode`, cut, unless overridden."""
        example = self.encode(record, tokenizer)
        return [example if limit is None else self.cut(example, limit)]

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        """The example of an `Input`, whose target is not known."""
        return self.encode(record, tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Token ids of what a model that writes is given: a text to go on from, unless overridden."""
        return tokenizer.encode(text)

    def cut(self, example: Example, length: int) -> Example:
        """The example with its first `length` tokens only; called where the task does not pack."""
        return replace(example, tokens=example.tokens[:length])

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """The batch of some examples; labels are shifted here and nowhere else."""

    @abstractmethod
    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """Sum and weight of the loss, from hidden states `[B, T, D]`; it asks the head only where it must."""

    @abstractmethod
    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        """Fresh metrics by name, for one pass over held-out data."""

    @abstractmethod
    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        """Add a batch to `metrics`."""

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """What trivial predictors reach on the held-out data: name -> metric -> value."""
        return {}

    @abstractmethod
    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """One JSON object for each row of the batch, in order."""

    def answer(self, model: Any, batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The predictions for a batch: those of `predict`, unless a task has the model write them token by token."""
        rows: list[dict[str, Any]] = model.read(batch, readout=lambda hidden, head: self.predict(hidden, head, batch))
        return rows

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The prediction of a record that took several rows, as one may if the task packs; sums unless overridden."""
        return {name: sum(part[name] for part in parts) for name in parts[0]}
