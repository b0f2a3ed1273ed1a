"""Predictions for records, in their order and in bounded memory however many there are.

Records are taken a chunk at a time; within a chunk those of like length share a batch, so that little is padded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from miniformer.data.jsonl import validated
from miniformer.data.packing import PackedRows
from miniformer.data.prepare import n_tokens
from miniformer.kernel.errors import DataError
from miniformer.kernel.task import Example, Task

from .load import Trained

CHUNK = 1024
"""Records that are held at a time."""


def predict(trained: Trained, records: Iterable[Any], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The prediction for each record, in order, as the model's task makes them.

    Args:
        trained: the model, with its task and tokenizer; it runs where its weights are.
        records: objects with the task's input fields, or its records; labels are not needed, and not looked at. They are
            taken as predictions are asked for, some ahead.
        batch_size: rows that go through the model together.

    Raises:
        DataError: a record is not what the task takes; its number, counted from 1, is told.
    """
    model = wanted(trained.task)
    named = ((f"record {number}", record if isinstance(record, BaseModel) else _checked(number, record, model))
             for number, record in enumerate(records, start=1))
    return predictions(trained, named, batch_size=batch_size)


def wanted(task: Task) -> type[BaseModel]:
    """What a prediction needs of a record."""
    return task.Input or task.Record


def predictions(trained: Trained, located: Iterable[tuple[str, Any]], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The prediction for each record that is given with where it stands; errors start with that."""
    remaining = iter(located)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        examples = [_example(trained, where, record) for where, record in chunk]
        order = sorted(range(len(chunk)), key=lambda i: n_tokens(examples[i]))
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), batch_size):
            places = order[start:start + batch_size]
            found.update(zip(places, _batch(trained, [examples[i] for i in places], batch_size), strict=True))
        for i in range(len(chunk)):
            yield found[i]


def _checked(number: int, record: Any, model: type[BaseModel]) -> BaseModel:
    if not isinstance(record, Mapping):
        raise DataError(f"record {number}: expected an object with {', '.join(map(repr, model.model_fields))}; "
                        f"found {record!r:.80}")
    return validated(f"record {number}", dict(record), model)


def _example(trained: Trained, where: str, record: Any) -> Example:
    try:
        example = trained.task.question(record, trained.tokenizer)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not len(example.tokens):
        raise DataError(f"{where}: nothing to predict from: no tokens")
    return example if trained.task.packs else trained.task.cut(example, trained.model.config.max_seq_len)


def _batch(trained: Trained, examples: Sequence[Example], batch_size: int) -> list[dict[str, Any]]:
    """The prediction for each example; one that fills several rows of a task that packs is put together again."""
    task = trained.task
    if not task.packs:
        return _rows(trained, examples)
    length = min(trained.model.config.max_seq_len, max(len(example.tokens) for example in examples))
    packed = [PackedRows([example], length) for example in examples]
    rows = [[own[i] for i in range(len(own))] for own in packed]
    flat = list(itertools.chain.from_iterable(rows))
    parts = iter([part for start in range(0, len(flat), batch_size) for part in _rows(trained, flat[start:start + batch_size])])
    return [task.join(list(itertools.islice(parts, len(own)))) for own in rows]


@torch.inference_mode()
def _rows(trained: Trained, rows: Sequence[Example]) -> list[dict[str, Any]]:
    batch = trained.task.collate(rows).to(next(trained.model.parameters()).device)
    return trained.task.answer(trained.model, batch, trained.tokenizer)
