"""Predictions for records, in their order, and in bounded memory however many records there are.

Records are taken a chunk at a time. Within a chunk, records of like lengths share a batch, so that little is padded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from miniformer.data.jsonl import validated
from miniformer.data.notes import Cuts
from miniformer.data.packing import PackedRows
from miniformer.data.plain import plain
from miniformer.data.prepare import n_tokens
from miniformer.decoding.arguments import checked_count
from miniformer.kernel.errors import DataError, UserError
from miniformer.kernel.task import Example, Task, shortened

from .load import Trained

logger = logging.getLogger(__name__)
CHUNK = 1024
"""The number of records that are held at a time."""


def predict(trained: Trained, records: Iterable[Any], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The prediction for each record, in order, as the model's task makes them.

    Args:
        trained: the model, with its task and tokenizer; it runs where its weights are.
        records: objects with the task's input fields, or its records. Labels are neither needed nor read. Records are taken
            as predictions are asked for, some ahead.
        batch_size: rows that go through the model together.

    Raises:
        DataError: a record is not what the task takes; the error names it by its number, counted from 1.
    """
    schema = input_schema(trained.task)
    located = ((f"record {number}", record if isinstance(record, BaseModel) else _checked(number, record, schema))
               for number, record in enumerate(records, start=1))
    return predictions(trained, located, batch_size=batch_size)


def input_schema(task: Task) -> type[BaseModel]:
    """The fields of a record that a prediction needs."""
    return task.Input or task.Record


def predictions(trained: Trained, located: Iterable[tuple[str, Any]], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The prediction for each record, in order. Each record comes with its place, such as file and line, for error messages.

    Raises:
        DataError: nothing can be predicted from a record.
    """
    for outcome in outcomes(trained, located, batch_size=batch_size):
        if isinstance(outcome, DataError):
            raise outcome
        yield outcome


def outcomes(trained: Trained, located: Iterable[tuple[str, Any]], *,
             batch_size: int = 32) -> Iterator[dict[str, Any] | DataError]:
    """What comes of each record, in order: its prediction, or the error that says why there is none.

    At the end it is logged how many texts were cut.

    Args:
        trained: the model, with its task and tokenizer.
        located: records with their places; a record that could not be read is the error that says so.
        batch_size: rows that go through the model together.
    """
    if checked_count("batch_size", batch_size) < 1:
        raise UserError(f"batch_size: at least 1; found {batch_size}")
    remaining, cuts = iter(located), Cuts(trained.model.config.max_seq_len, texts=trained.task.input_dim is None)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        by_place: dict[int, dict[str, Any] | DataError] = {}
        examples: dict[int, Example] = {}
        for i, (where, record) in enumerate(chunk):
            try:
                examples[i] = example_of(trained, where, record)
            except DataError as error:
                by_place[i] = error
        cuts.add(examples.values())
        order = sorted(examples, key=lambda i: n_tokens(examples[i]))
        for start in range(0, len(order), batch_size):
            places = order[start:start + batch_size]
            by_place.update(zip(places, _batch(trained, [examples[i] for i in places], batch_size), strict=True))
        for i in range(len(chunk)):
            yield by_place[i]
    for note in cuts.notes():
        logger.warning(note)


def _checked(number: int, record: Any, schema: type[BaseModel]) -> BaseModel:
    if not isinstance(record, Mapping):
        raise DataError(f"record {number}: expected an object with {', '.join(map(repr, schema.model_fields))}; "
                        f"found {record!r:.80}")
    return validated(f"record {number}", plain(record), schema)


def example_of(trained: Trained, where: str, record: Any) -> Example:
    """The example that a prediction of a record is made from.

    Raises:
        DataError: nothing can be predicted from it, or it is an error itself.
    """
    if isinstance(record, DataError):
        raise record
    try:
        example = trained.task.question(record, trained.tokenizer)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not len(example.tokens):
        raise DataError(f"{where}: nothing to predict from: no tokens")
    return example if trained.task.packs else shortened(trained.task, example, trained.model.config.max_seq_len)


def _batch(trained: Trained, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
    """The prediction for each example; where a task packs, an example may fill several rows, whose predictions are joined."""
    task = trained.task
    if not task.packs:
        return _rows(trained, examples)
    length = min(trained.model.config.max_seq_len, max(len(example.tokens) for example in examples))
    rows_of_examples = []
    for example in examples:
        packed = PackedRows([example], length)
        rows_of_examples.append([packed[i] for i in range(len(packed))])
    rows = list(itertools.chain.from_iterable(rows_of_examples))
    parts: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_size):
        parts += _rows(trained, rows[start:start + batch_size])
    remaining = iter(parts)
    return [task.join(list(itertools.islice(remaining, len(own_rows)))) for own_rows in rows_of_examples]


@torch.inference_mode()
def _rows(trained: Trained, rows: Sequence[Example]) -> list[dict[str, Any]]:
    batch = trained.task.collate(rows).to(next(trained.model.parameters()).device)
    return trained.task.answer(trained.model, batch, trained.tokenizer)
