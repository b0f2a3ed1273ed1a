"""From a run's data settings to examples: read, split, learn labels, get a tokenizer, encode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import DataError
from miniformer.kernel.spec import ComponentSpec, build, resolve
from miniformer.kernel.task import Example, Split, Task

from . import stdlib
from .jsonl import read_records
from .tokenizer import NoTokenizer, Tokenizer

Located = list[tuple[str, Any]]
TOKENIZER_BYTES = 8_000_000
"""Text that a tokenizer is trained on at most; more changes few merges."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A run's data, and what was learnt from it.

    Attributes:
        task_spec, task: the task, with the options that the training records decide (its labels).
        tokenizer: given, or trained on the training texts; one without tokens where the inputs are features.
        train, val, test: records and their examples.
        fingerprint: digests and counts, to tell whether two runs saw the same data.
    """

    task_spec: ComponentSpec
    task: Task
    tokenizer: Tokenizer
    train: Split
    val: Split
    test: Split | None
    fingerprint: dict[str, Any]


def prepare(task_spec: ComponentSpec, train_path: str, val_path: str | None = None, test_path: str | None = None, *,
            val_fraction: float = 0.05, tokenizer: Tokenizer | None = None, vocab_size: int = 4096,
            max_len: int | None = None) -> PreparedData:
    """Read and encode a run's data.

    Args:
        task_spec: the task, in resolved form.
        train_path, val_path, test_path: JSONL files, or `stdlib`; without `val_path` records are held out.
        val_fraction: part that is held out.
        tokenizer: None trains one of `vocab_size` tokens on the training texts.
        max_len: longest example in tokens; longer ones are cut, except where the task packs.

    Raises:
        DataError: with file and line.
    """
    task = build(Task, task_spec)
    records = _read(train_path, task)
    fingerprint = {"train": _fingerprint(train_path, records)}
    if val_path is None:
        train, val = hold_out(records, val_fraction, train_path)
    else:
        train, val = records, records if val_path == train_path else _read(val_path, task)
        fingerprint["val"] = _fingerprint(val_path, val)
    test = None if test_path is None else _read(test_path, task)
    if test_path is not None and test is not None:
        fingerprint["test"] = _fingerprint(test_path, test)
    try:
        # of one file all records are looked at, so that a rare label does not hang on being held out
        learnt = task.fit([record for _, record in (records if val_path is None else train)])
    except ValueError as error:
        raise DataError(f"{train_path}: {error}") from None
    task, spec = _with(task_spec, learnt)
    if task.input_dim is not None:
        if tokenizer is not None:
            raise DataError(f"{train_path}: the inputs are numbers, which need no tokenizer; leave it out")
        tokenizer = NoTokenizer()
    tokenizer = tokenizer or Tokenizer.train(_some_text(task, train), vocab_size)
    try:
        task, spec = _with(spec, task.fit_tokenizer(tokenizer))
    except ValueError as error:
        raise DataError(f"tokenizer: {error}") from None
    limit = None if task.packs else max_len
    seen = _encoded(task, train, tokenizer, limit)
    return PreparedData(spec, task, tokenizer, seen, seen if val is train else _encoded(task, val, tokenizer, limit),
                        None if test is None else _encoded(task, test, tokenizer, limit), fingerprint)


def hold_out(records: Located, fraction: float, source: str) -> tuple[Located, Located]:
    """Training and held-out records: those whose content has the lowest digests, so that order and seed do not matter.

    Equal records stay together; `fraction` is of those that differ.
    """
    if len(records) < 2:
        raise DataError(f"{source}: one record only, so none can be held out to measure on; give --val-path")
    keys = [_digest(record) for _, record in records]
    different = sorted(set(keys))
    if len(different) < 2:
        raise DataError(f"{source}: all records are alike, so none can be held out to measure on; give --val-path")
    held = set(different[:min(math.ceil(fraction * len(different)), len(different) - 1)])
    return ([item for item, key in zip(records, keys, strict=True) if key not in held],
            [item for item, key in zip(records, keys, strict=True) if key in held])


def _with(spec: ComponentSpec, learnt: Mapping[str, Any]) -> tuple[Task, ComponentSpec]:
    """A task with more of its options known, and its spec."""
    spec = resolve("task", {"name": spec.name, **spec.options, **learnt})
    return build(Task, spec), spec


def _read(path: str, task: Task) -> Located:
    if path == stdlib.NAME:
        return list(task.stdlib())
    return list(read_records(path, task.Record))


def _digest(record: Any) -> bytes:
    return hashlib.sha256(record.model_dump_json().encode()).digest()


def _fingerprint(path: str, records: Located) -> dict[str, Any]:
    total = hashlib.sha256()
    for _, record in records:
        total.update(record.model_dump_json().encode() + b"\n")
    return {"source": path if path == stdlib.NAME else str(Path(path).resolve()), "records": len(records),
            "sha256": total.hexdigest()}


def _some_text(task: Task, records: Located) -> Iterable[str]:
    """Texts of a sample of the records that hangs on their content alone, not on where the file is."""
    size = 0
    for _, record in sorted(records, key=lambda item: _digest(item[1])):
        for text in task.texts(record):
            yield text
            size += len(text)
        if size > TOKENIZER_BYTES:
            return


def _encoded(task: Task, records: Located, tokenizer: Tokenizer, limit: int | None) -> Split:
    examples: list[Example] = []
    for where, record in records:
        try:
            examples += task.examples(record, tokenizer, limit)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    return Split([record for _, record in records], examples)


def token_counts(examples: Sequence[Example]) -> Mapping[str, int]:
    """How many examples and tokens there are."""
    return {"examples": len(examples), "tokens": sum(map(n_tokens, examples))}


def n_tokens(example: Example) -> int:
    """Tokens of an example, its source's included."""
    return len(example.tokens) + (0 if example.source is None else len(example.source))
