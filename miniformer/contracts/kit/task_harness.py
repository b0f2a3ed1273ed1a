"""A task with what a run would give it: a few records, what it learnt from them, a tokenizer, and a small model in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python
from torch import Tensor
from torchmetrics import Metric

from miniformer.config.model_config import TransformerConfig
from miniformer.data.jsonl import read_records
from miniformer.data.packing import PackedRows
from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.kernel.errors import DataError
from miniformer.kernel.options import arguments, complete
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task
from miniformer.model.assemblies import assembly_for
from miniformer.model.assembly import BlockAssembly

from .case import Case, move, require, seeded
from .properties import Skip

SEEN, RECORDS = 3000, 24
"""Records that are read at most, and that are used: the shortest of a sample from all over."""
LIMIT, CUT, VOCABULARY = 32, 20, 300
"""Tokens of a row, tokens of a text in a packed row, and tokens that the tokenizer has."""
EXACT, ROUNDED = 1e-9, 1e-6
"""How near numbers are that are equal: losses in float64, and metrics and predictions, which may be rounded."""


def exact(loss: Tensor) -> float:
    """How near losses are that are equal; a task may compute its loss in float32, and a sum of it is rounded then."""
    return max(EXACT, 16 * torch.finfo(loss.dtype).eps) if loss.is_floating_point() else EXACT


@dataclass(frozen=True)
class TaskHarness:
    """A task that has learnt from its records.

    Attributes:
        task: the task, made of its options and of what it learnt, through JSON.
        given, learnt: what it is made of, as JSON data: options, and what `fit` and `fit_tokenizer` returned.
        tokenizer: trained on the records.
        split: the records and their examples.
        model: a model that the task trains, with moved weights, in eval mode.
    """

    task: Task
    given: Mapping[str, Any]
    learnt: Mapping[str, Any]
    tokenizer: Any
    split: Split
    model: BlockAssembly

    @classmethod
    def drawn(cls, case: Case, options: Mapping[str, Any] | None = None) -> TaskHarness:
        """The task with drawn options, or with some; a set of them that it refuses is no example."""
        subject = case.subject
        fixed = json.dumps(to_jsonable_python(subject.fixed), sort_keys=True)
        options = case.options() if options is None else options
        learnt = _prepared(subject.cls, fixed, subject.data).learnt
        chosen = {name: value for name, value in {**options, **subject.fixed}.items() if name not in learnt}
        case.story["options"] = chosen
        case.built({}, chosen)
        return _prepared(subject.cls, json.dumps(to_jsonable_python(chosen), sort_keys=True), subject.data)

    def pick(self, case: Case, at_least: int = 2, at_most: int = 5) -> list[Example]:
        """The rows of some examples."""
        return self.rows(self.examples(case, at_least, at_most))

    def examples(self, case: Case, at_least: int = 2, at_most: int = 5) -> list[Example]:
        """Some of the examples."""
        there = len(self.split.examples)
        if there < at_least:
            raise Skip(f"there are {there} examples, and this takes {at_least}; give more records with data= or --data")
        chosen = case.draw("examples", st.lists(st.integers(0, there - 1), min_size=at_least, max_size=at_most, unique=True))
        examples = [self.split.examples[i] for i in chosen]
        case.story["examples"] = f"{chosen} of {[len(example.tokens) for example in examples]} tokens"
        return examples

    def record(self, case: Case, name: str = "record") -> Any:
        """One of the records, as the story's `name`."""
        record = case.choose(name, self.split.records)
        line = record.model_dump_json()
        case.story[name] = line if len(line) <= 200 else f"{line[:200]}..."
        return record

    def rows(self, examples: Sequence[Example]) -> list[Example]:
        """Rows of a batch: these examples, or where the task packs the rows that they fill."""
        if not self.task.packs:
            return list(examples)
        packed = PackedRows([self.task.cut(example, CUT) for example in examples], LIMIT)
        return [packed[i] for i in range(len(packed))]

    def loss(self, rows: Sequence[Example]) -> LossTerm:
        """The loss of some rows as one batch."""
        return loss_of(self.model, self.task, self.task.collate(rows))

    def predictions(self, rows: Sequence[Example]) -> list[dict[str, Any]]:
        """What is predicted for some rows as one batch."""
        return predictions_of(self.model, self.task, self.task.collate(rows))

    def answers(self, rows: Sequence[Example]) -> list[dict[str, Any]]:
        """What people are told about some rows as one batch."""
        with torch.no_grad():
            return self.task.answer(self.model, self.task.collate(rows), self.tokenizer)

    def measured(self, *batches: Sequence[Example]) -> dict[str, float]:
        """The metrics over some batches of rows."""
        return measured(self.model, self.task, self.tokenizer, [self.task.collate(rows) for rows in batches])

    def update(self, metrics: Mapping[str, Metric], rows: Sequence[Example]) -> None:
        """Add some rows as one batch to metrics."""
        updated(metrics, self.model, self.task, self.task.collate(rows))


def model_for(task: Task, vocab_size: int, **fields: Any) -> BlockAssembly:
    """A small model that a task trains, in float64 and eval mode, with every weight moved from where it starts."""
    tokens = task.input_dim is None and task.n_outputs(vocab_size) == vocab_size
    outputs = {} if tokens else {"output_dim": task.n_outputs(vocab_size)}
    config = TransformerConfig.model_validate({
        "vocab_size": max(1, vocab_size), "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16, "max_seq_len": 64,
        "causal": task.causal, "head": task.head, "input_dim": task.input_dim, **outputs, **fields})
    with seeded(0):
        model = assembly_for(task.has_source)(config).double().eval()
        move(model)
    return model


def _read(model: BlockAssembly, batch: Batch, readout: Any) -> Any:
    """What `readout` makes of hidden states and head."""
    with torch.no_grad():
        return model.read(batch, readout=readout)


def loss_of(model: BlockAssembly, task: Task, batch: Batch) -> LossTerm:
    """The task's loss of a batch."""
    term: LossTerm = _read(model, batch, lambda hidden, head: task.loss(hidden, head, batch))
    return term


def predictions_of(model: BlockAssembly, task: Task, batch: Batch) -> list[dict[str, Any]]:
    """The task's predictions for a batch."""
    rows: list[dict[str, Any]] = _read(model, batch, lambda hidden, head: task.predict(hidden, head, batch))
    return rows


def measured(model: BlockAssembly, task: Task, tokenizer: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """The task's metrics over some batches."""
    metrics = task.metrics(tokenizer)
    for batch in batches:
        updated(metrics, model, task, batch)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def updated(metrics: Mapping[str, Metric], model: BlockAssembly, task: Task, batch: Batch) -> None:
    """Add a batch to metrics."""
    _read(model, batch, lambda hidden, head: task.update(metrics, hidden, head, batch, task.loss(hidden, head, batch)))


@cache
def records_of(cls: type[Task], data: str | None) -> list[Any]:
    """Records to check a task with: of a file, or of those that it embeds.

    Raises:
        Skip: there are none.
        DataError: the file cannot be used.
    """
    try:
        there = cls().stdlib() if data is None else read_records(data, cls.Record)
        found = [record for _, record in islice(there, SEEN)]
    except DataError:
        if data is not None:
            raise
        raise Skip("it has no embedded records; a JSONL file of some helps: data=, or --data on the command line") from None
    spread = found[::max(1, len(found) // (3 * RECORDS))]
    sizes = [len(record.model_dump_json()) for record in spread]
    return [spread[i] for i in sorted(sorted(range(len(spread)), key=lambda i: sizes[i])[:RECORDS])]


@cache
def _prepared(cls: type[Task], options: str, data: str | None) -> TaskHarness:
    """What a run does before its first step, for a class that need not be registered."""
    records, given = records_of(cls, data), json.loads(options)
    learnt = json.loads(json.dumps(dict(made(cls, given).fit(records))))
    task = made(cls, {**given, **learnt})
    tokenizer = _tokenizer(tuple(text for record in records for text in task.texts(record)))
    learnt |= json.loads(json.dumps(dict(task.fit_tokenizer(tokenizer))))
    task = made(cls, {**given, **learnt})
    limit = None if task.packs else LIMIT
    examples = [example for record in records for example in task.examples(record, tokenizer, limit)]
    model = model_for(task, tokenizer.vocab_size, max_seq_len=LIMIT)
    return TaskHarness(task, given, learnt, tokenizer, Split(records, examples), model)


def made(cls: type[Task], options: Mapping[str, Any]) -> Task:
    """The task with these options, as they come from JSON."""
    return cls(**arguments(cls, complete(cls, dict(options), cls.__name__)))


@cache
def _tokenizer(texts: tuple[str, ...]) -> Tokenizer:
    return Tokenizer.train(texts, VOCABULARY) if texts else NoTokenizer()


def near(found: Any, expected: Any, what: str, tolerance: float = ROUNDED) -> None:
    """Two values of JSON are the same, numbers up to a tolerance relative to them or to 1.

    Raises:
        Broken: they are not; the text says where.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and found.keys() == expected.keys():
        for name, value in expected.items():
            near(found[name], value, f"{what} {name}", tolerance)
    elif _is_list(expected) and _is_list(found) and len(found) == len(expected):
        for i, (one, other) in enumerate(zip(found, expected)):
            near(one, other, f"{what} {i}", tolerance)
    elif isinstance(expected, float) and isinstance(found, (int, float)):
        apart = abs(found - expected)
        close = apart <= tolerance * max(1.0, abs(expected)) or (math.isnan(found) and math.isnan(expected))
        require(close, f"{what}: {found:.6g} and {expected:.6g}, {apart:.1e} apart")
    else:
        require(found == expected, f"{what}: {found!r:.80} and {expected!r:.80}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
