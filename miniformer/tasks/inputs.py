"""The input of a sequence task: a text, or a series of numbers or of vectors, such as a time series."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from torch import Tensor

from miniformer.data.plain import plain
from miniformer.kernel.task import Tokenizer

NUMBER = {"type": "number"}
ROUNDING = 1e-14
"""Deviations below this part of the largest number are what rounding leaves of equal ones, and count as 0."""
Features = tuple[tuple[float, Annotated[float, Field(gt=0)]], ...]
"""Mean and standard deviation of each of F features in the training records; empty if the inputs are texts."""


def _sequence(value: Any) -> Any:
    """A text or a series, its numbers as floats.

    Raises:
        ValueError: the value is neither; the message names the element that is wrong.
    """
    if isinstance(value, str):
        return value
    steps = value if _is_series(value) else plain(value)
    if isinstance(steps, str):
        return steps
    if not isinstance(steps, list) or not steps:
        raise ValueError("expected a text, a list of numbers, or a list of lists of numbers")
    if not _is_series(steps):
        raise ValueError(_wrong_element(steps))
    return [list(map(float, step)) for step in steps] if isinstance(steps[0], list) else list(map(float, steps))


def _is_series(value: Any) -> bool:
    """Whether a value is a list of numbers, or of lists of numbers."""
    if not isinstance(value, list) or not value:
        return False
    if isinstance(value[0], list):
        return all(isinstance(step, list) and step and all(map(_is_number, step)) for step in value)
    return all(map(_is_number, value))


def _wrong_element(steps: list[Any]) -> str:
    """Which element of a list is the first that is wrong, and why."""
    vectors = isinstance(steps[0], list)
    for number, step in enumerate(steps, start=1):
        if isinstance(step, list) != vectors or (vectors and not step):
            expected = "a list of numbers" if vectors else "a number"
            return f"element {number} should be {expected}{' like the first' if number > 1 else ''}; found {_shown(step)}"
        for place, item in enumerate(step if vectors else [step], start=1):
            if not _is_number(item):
                where = f"element {number}, number {place}" if vectors else f"element {number}"
                return f"{where} should be a finite number; found {_shown(item)}"
    raise AssertionError("no element is wrong")


def _shown(value: Any) -> str:
    """A value as JSON has it, and not too long."""
    try:
        return json.dumps(value, default=repr)[:80]
    except (TypeError, ValueError, RecursionError):
        return f"{type(value).__name__} that JSON cannot hold"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


Sequential = Annotated[str | list[float] | list[list[float]], PlainValidator(_sequence), WithJsonSchema({"anyOf": [
    {"type": "string"}, {"type": "array", "items": {"anyOf": [NUMBER, {"type": "array", "items": NUMBER}]}}]})]


class SequenceInput(BaseModel):
    """A text, or a series."""

    input: Sequential


def texts_of(record: SequenceInput) -> Iterator[str]:
    """The text of a record, if it is one."""
    if isinstance(record.input, str):
        yield record.input


def learn_features(records: Sequence[SequenceInput]) -> dict[str, Features]:
    """The option `features`: mean and standard deviation of each feature; nothing for texts.

    Steps with another number of features than the first are ignored here; `encode_input` refuses them, naming the step.

    Raises:
        ValueError: numbers are so large that their mean or deviation is not finite.
    """
    if isinstance(records[0].input, str):
        return {}
    width = len(_steps(records[0])[0])
    steps = np.array([step for record in records if not isinstance(record.input, str)
                      for step in _steps(record) if len(step) == width], dtype=np.float64)
    return {"features": tuple((mean, std or 1.0) for mean, std in (scale_of("input", column) for column in steps.T))}


def scale_of(field: str, numbers: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the numbers of a field; 0 if they differ by rounding alone.

    Only the message of an error uses the field's name.

    Raises:
        ValueError: one of the two is not finite; the message names the field and the largest number.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(numbers.mean()), float(numbers.std())
    if not math.isfinite(mean + std):
        largest = numbers[np.abs(numbers).argmax()]
        raise ValueError(f"field {field!r}: {largest:g} is too large to take a mean and a deviation of; expected numbers whose "
                         "squares can be added up")
    return mean, std if std > ROUNDING * float(np.abs(numbers).max()) else 0.0


def encode_input(record: SequenceInput, tokenizer: Tokenizer, features: Features) -> list[int] | Tensor:
    """Token ids of a text, or standardised features `[T, F]` of a series.

    Raises:
        ValueError: the input is of another kind than the training records, too far from them, or empty.
    """
    if isinstance(record.input, str):
        if features:
            raise ValueError(f"field 'input': a text; expected {_expected(features)}")
        ids = tokenizer.encode_whole(record.input)
        if not ids:
            raise ValueError("field 'input' has no tokens; expected some text")
        return ids
    if not features:
        raise ValueError("field 'input': a list of numbers; expected a text, as in the first training record")
    steps = _steps(record)
    for number, step in enumerate(steps, start=1):
        if len(step) != len(features):
            raise ValueError(f"field 'input': element {number} is {_count(len(step))}; expected {_expected(features)}")
    mean, std = torch.tensor(features, dtype=torch.float64).T
    scaled = ((torch.tensor(steps, dtype=torch.float64) - mean) / std).float()
    if not scaled.isfinite().all():
        number = int((~scaled.isfinite()).any(dim=1).nonzero()[0]) + 1
        raise ValueError(f"field 'input': element {number} has a number too far from those of the training records; found "
                         f"{max(map(abs, steps[number - 1])):g}")
    return scaled


def _steps(record: SequenceInput) -> list[list[float]]:
    """A series as a list of vectors. A plain number is a vector of one."""
    return [step if isinstance(step, list) else [step] for step in record.input]  # type: ignore[list-item]


def _count(n: int) -> str:
    return "1 number" if n == 1 else f"{n} numbers"


def _expected(features: Features) -> str:
    return f"{_count(len(features))} for each, as in the first training record"
