"""The Task interface: a task owns its records, batches, loss, metrics and predictions.

Nothing else in miniformer knows what a label is. A task never divides a loss by the size of its batch: it returns a sum and a
weight, and the trainer divides once. So accumulated batches and parallel processes give the loss of one big batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """The part of a tokenizer that tasks use."""

    pad_id: int
    bos_id: int | None
    eos_id: int | None
    mask_id: int | None

    @property
    def vocab_size(self) -> int:
        """The highest id and one: the number of tokens, if no ids are left out."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, starting with the start token if there is one."""

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a complete text: those of `encode`, then the end token if the tokenizer adds one."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""

    def byte_lengths(self) -> Sequence[int]:
        """For each of the `vocab_size` tokens, how many UTF-8 bytes it stands for; 0 for special tokens."""

    def byte_counts(self, text: str) -> Sequence[int] | None:
        """For each token of `encode(text)`, how many bytes of `text` it stands for; None: `byte_lengths` says it of each."""


class LossTerm(NamedTuple):
    """A loss as a sum, and the weight to divide it by."""

    sum: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One record ready for a batch.

    Attributes:
        tokens: T token ids, or features `[T, F]`.
        target: the answer, in the task's own form; None: the record is to be predicted.
        documents: T document numbers, in a row packed from several examples; None: one document.
        following: T ids: the token that follows each token in its document, or -1; set in packed rows.
        source: S token ids for the encoder of an encoder-decoder; `tokens` are then the decoder's.
        draw: seed of everything random about the example. In training it depends on seed, epoch and place; held out it is 0.
        uncut: length of its longest part that was cut, before that; 0: it is whole.
        byte_counts: T numbers: how many bytes of the text each token stands for, or in packed rows the token that follows it;
            None: it is not needed, or the tokenizer's `byte_lengths` say it.
    """

    tokens: Sequence[int] | Tensor
    target: Any = None
    documents: Tensor | None = None
    following: Tensor | None = None
    source: Sequence[int] | Tensor | None = None
    draw: int = 0
    uncut: int = field(default=0, compare=False)
    byte_counts: Sequence[int] | Tensor | None = None


class Split(NamedTuple):
    """Records and their examples, in one order; a record may have several examples."""

    records: Sequence[Any]
    examples: Sequence[Example]


class Source(NamedTuple):
    """The encoder's input in an encoder-decoder: `[B, S]` token ids and their layout."""

    inputs: Tensor
    layout: Layout


class Batch:
    """The inputs of a model and the targets of its task.

    It is no dataclass: Lightning takes dataclasses apart to convert their fields, and cannot rebuild a frozen one.

    Args:
        inputs: `[B, T]` token ids, or `[B, T, F]` features.
        layout: position and document of each of the T inputs.
        targets: tensors that only the task reads.
        source: the encoder's input, in an encoder-decoder; `inputs` are then the decoder's.
    """

    __slots__ = ("inputs", "layout", "source", "targets")

    def __init__(self, inputs: Tensor, layout: Layout, targets: Mapping[str, Tensor], source: Source | None = None) -> None:
        self.inputs, self.layout, self.targets, self.source = inputs, layout, targets, source

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Copy the batch to another device."""
        source = self.source and Source(self.source.inputs.to(device, **kwargs), self.source.layout.to(device))
        return Batch(self.inputs.to(device, **kwargs), self.layout.to(device),
                     {name: value.to(device, **kwargs) for name, value in self.targets.items()}, source)


class Task(ABC):
    """What a model is trained to do. It has no sizes; options are the constructor's keyword-only parameters.

    Class data:
        Record: pydantic model of one JSONL line; its fields are the file's fields.
        Input: pydantic model of a line to predict, without the answer; None: `Record`.
        causal: it trains a model in which no token sees a later one.
        head: the head that the model gets unless the spec names one.
        packs: a row may hold several examples; otherwise each example gets a row of its own, padded.
        has_source: its batches have a source, so it trains an encoder-decoder.
        with_source: the task that replaces this one if an encoder-decoder is asked for; None: it trains none.
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
    """Width of the features that it was fitted to; None: its inputs are texts."""

    def stdlib(self) -> Iterable[tuple[str, Any]]:
        """Make records from Python's standard library, each with the place that it comes from, for `--train-path stdlib`."""
        raise DataError(f"{type(self).__name__} has no embedded data; give --train-path")

    def fit(self, records: Iterable[Any]) -> Mapping[str, Any]:
        """Learn options from the training records, such as the labels that occur; they are saved with the run.

        The task itself does not change: it is rebuilt from its options and those returned here.
        """
        return {}

    def fit_tokenizer(self, tokenizer: Tokenizer) -> Mapping[str, Any]:
        """Learn options from the tokenizer, such as the id of a special token; they are saved as those of `fit` are."""
        return {}

    @abstractmethod
    def texts(self, record: Any) -> Iterator[str]:
        """Give the texts of a record: a tokenizer is trained on them, and they are encoded ahead, many records at a time."""

    @abstractmethod
    def n_outputs(self, vocab_size: int) -> int:
        """Give the width of the head."""

    @abstractmethod
    def encode(self, record: Any, tokenizer: Tokenizer) -> Example:
        """Turn a record into an example."""

    def examples(self, record: Any, tokenizer: Tokenizer, limit: int | None) -> Sequence[Example]:
        """Turn a record into examples of at most `limit` tokens; by default one, that of `encode`, cut."""
        example = self.encode(record, tokenizer)
        return [example if limit is None else shortened(self, example, limit)]

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        """Turn an `Input` into an example without a target."""
        return self.encode(record, tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Turn a prompt into the token ids that generation starts from; by default a text to be continued."""
        return tokenizer.encode(text)

    def cut(self, example: Example, length: int) -> Example:
        """Cut an example to its first `length` tokens; called only if the task does not pack."""
        return replace(example, tokens=example.tokens[:length])

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Join examples into a batch. Labels are shifted here and nowhere else."""

    @abstractmethod
    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """Compute sum and weight of the loss from hidden states `[B, T, D]`, calling the head only where it is needed."""

    @abstractmethod
    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        """Make fresh metrics by name, for one pass over held-out data."""

    @abstractmethod
    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        """Add a batch to `metrics`."""

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """Measure trivial predictors on the held-out data: name -> metric -> value."""
        return {}

    def unmeasurable(self, examples: Sequence[Example]) -> str | None:
        """Say why nothing in these examples counts in the loss; None, the usual case: something does."""
        return None

    def remarks(self, split: Split, name: str) -> Iterable[str]:
        """Say what a user should know of some data before training, such as labels that occur once, a sentence each.

        Args:
            split: the data.
            name: what they are called in a sentence: `training`, or the name of data to measure on, such as `held-out`.
        """
        return ()

    @abstractmethod
    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """Give one JSON object for each row of the batch, in order."""

    def answer(self, model: Any, batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Predict a batch: by `predict`, unless the task lets the model write its answers token by token."""
        rows: list[dict[str, Any]] = model.read(batch, readout=lambda hidden, head: self.predict(hidden, head, batch))
        return rows

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join the predictions of a record that took several rows, as it may if the task packs; by default, sums."""
        return {name: sum(part[name] for part in parts) for name in parts[0]}


def shortened(task: Task, example: Example, limit: int) -> Example:
    """The example as `Task.cut` cuts it to `limit` tokens, with its length before in `uncut` if anything was taken away."""
    shorter = task.cut(example, limit)
    lost = [before for before, after in zip(_lengths(example), _lengths(shorter), strict=True) if after < before]
    return replace(shorter, uncut=max(lost)) if lost else shorter


def _lengths(example: Example) -> tuple[int, int, int]:
    """Lengths of the tokens, the source, and a target that is a sequence too."""
    target = len(example.target) if isinstance(example.target, (list, tuple)) else 0
    return len(example.tokens), 0 if example.source is None else len(example.source), target
