"""Runs a task as a training run would: with records, fitted options, a tokenizer, and a small model in float64."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

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
from miniformer.kernel.interfaces import Head
from miniformer.kernel.options import arguments, complete
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task
from miniformer.model.assemblies import assembly_for
from miniformer.model.assembly import BlockAssembly

from .case import Case, perturb, require, seeded
from .properties import Skip

MAX_READ, MAX_RECORDS = 3000, 24
"""The number of records that are read at most, and of those that are used."""
LIMIT, CUT, VOCABULARY = 32, 20, 300
"""The number of tokens in a row, in a text of a packed row, and in the tokenizer's vocabulary."""
LOSS_TOLERANCE, METRIC_TOLERANCE = 1e-9, 1e-6
"""The rounding error that is allowed: of losses in float64, and of metrics and predictions, which a task may round."""


def loss_tolerance(loss: Tensor) -> float:
    """The rounding error that is allowed for a loss of this dtype; a task may compute its loss in float32."""
    return max(LOSS_TOLERANCE, 16 * torch.finfo(loss.dtype).eps) if loss.is_floating_point() else LOSS_TOLERANCE


@dataclass(frozen=True)
class TaskHarness:
    """A task that is fitted to its records.

    Attributes:
        task: the task, built from its options and the learnt ones, which went through JSON.
        options: the options that it was given, as JSON data.
        learnt: the options that `fit` and `fit_tokenizer` returned, as JSON data.
        tokenizer: a tokenizer trained on the records.
        split: the records and their examples.
        model: a model that the task can train, in eval mode, with weights moved away from their initial values.
    """

    task: Task
    options: Mapping[str, Any]
    learnt: Mapping[str, Any]
    tokenizer: Any
    split: Split
    model: BlockAssembly

    @classmethod
    def drawn(cls, case: Case, options: Mapping[str, Any] | None = None) -> TaskHarness:
        """The task with `options`, or with drawn ones; the example is rejected if the task refuses them."""
        under_test = case.under_test
        fixed = json.dumps(to_jsonable_python(under_test.fixed), sort_keys=True)
        options = case.options() if options is None else options
        learnt = _prepare(under_test.cls, fixed, under_test.data).learnt
        # an option that is learnt from the data, such as labels, is not drawn: it has to fit the records
        options = {name: value for name, value in {**options, **under_test.fixed}.items() if name not in learnt}
        case.story["options"] = options
        case.build_or_reject({}, options)
        return _prepare(under_test.cls, json.dumps(to_jsonable_python(options), sort_keys=True), under_test.data)

    def draw_rows(self, case: Case, at_least: int = 2, at_most: int = 5) -> list[Example]:
        """Draw examples and return the rows that they fill."""
        return self.rows(self.draw_examples(case, at_least, at_most))

    def draw_examples(self, case: Case, at_least: int = 2, at_most: int = 5) -> list[Example]:
        """Draw some of the examples.

        Raises:
            Skip: the records have fewer than `at_least` examples.
        """
        count = len(self.split.examples)
        if count < at_least:
            raise Skip(f"there are {count} examples, and this takes {at_least}; give more records with data= or --data")
        indices = case.draw("examples", st.lists(st.integers(0, count - 1), min_size=at_least, max_size=at_most, unique=True))
        examples = [self.split.examples[i] for i in indices]
        case.story["examples"] = f"{indices} of {[len(example.tokens) for example in examples]} tokens"
        return examples

    def draw_record(self, case: Case, name: str = "record") -> Any:
        """Draw one of the records and give a copy, which a task may change; `name` is its name in the story."""
        record = case.choose(name, self.split.records).model_copy(deep=True)
        line = record.model_dump_json()
        case.story[name] = line if len(line) <= 200 else f"{line[:200]}..."
        return record

    def rows(self, examples: Sequence[Example]) -> list[Example]:
        """The rows of a batch: the examples themselves, or if the task packs, the packed rows that they fill."""
        if not self.task.packs:
            return list(examples)
        packed = PackedRows([self.task.cut(example, CUT) for example in examples], LIMIT)
        return [packed[i] for i in range(len(packed))]

    def loss(self, rows: Sequence[Example]) -> LossTerm:
        """The loss of rows as one batch."""
        return loss_of(self.model, self.task, self.task.collate(rows))

    def read(self, batch: Batch) -> tuple[Tensor, Head]:
        """The hidden states that the model has for a batch, and its head."""
        states: tuple[Tensor, Head] = _read(self.model, batch, lambda hidden, head: (hidden, head))
        return states

    def predictions(self, rows: Sequence[Example]) -> list[dict[str, Any]]:
        """The predictions for rows as one batch."""
        return predictions_of(self.model, self.task, self.task.collate(rows))

    def answers(self, rows: Sequence[Example]) -> list[dict[str, Any]]:
        """The answers, which people read, for rows as one batch."""
        with torch.no_grad():
            return self.task.answer(self.model, self.task.collate(rows), self.tokenizer)

    def measure(self, *batches: Sequence[Example]) -> dict[str, float]:
        """The metrics over batches of rows."""
        return metrics_of(self.model, self.task, self.tokenizer, [self.task.collate(rows) for rows in batches])

    def update(self, metrics: Mapping[str, Metric], rows: Sequence[Example]) -> None:
        """Add rows as one batch to metrics."""
        update_metrics(metrics, self.model, self.task, self.task.collate(rows))


def model_for(task: Task, vocab_size: int, **fields: Any) -> BlockAssembly:
    """A small model that a task can train, in float64 and eval mode, with weights moved away from their initial values.

    Args:
        task: the task.
        vocab_size: the number of tokens in the vocabulary.
        fields: further fields of the model's config.
    """
    tokens = task.input_dim is None and task.n_outputs(vocab_size) == vocab_size
    outputs = {} if tokens else {"output_dim": task.n_outputs(vocab_size)}
    config = TransformerConfig.model_validate({
        "vocab_size": max(1, vocab_size), "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16, "max_seq_len": 64,
        "causal": task.causal, "head": task.head, "input_dim": task.input_dim, **outputs, **fields})
    with seeded(0):
        model = assembly_for(task.has_source)(config).double().eval()
        perturb(model)
    return model


_STATES: WeakKeyDictionary[BlockAssembly, dict[Any, tuple[Tensor, Head]]] = WeakKeyDictionary()
"""For models whose weights stay as they are: hidden states by all that they are computed from, since rows come again often."""
MAX_STATES = 256


def _read(model: BlockAssembly, batch: Batch, readout: Any) -> Any:
    """The result of `readout(hidden, head)` for a batch, without gradients. The hidden states are its own to change."""
    with torch.no_grad():
        known = _STATES.get(model)
        if known is None:
            return model.read(batch, readout=readout)
        key = tuple((name, value.shape, value.dtype, value.detach().to("cpu", torch.float64).numpy().tobytes())
                    for name, value in tensors_of(Batch(batch.inputs, batch.layout, {}, batch.source)).items())
        if key not in known:
            if len(known) == MAX_STATES:
                known.clear()
            known[key] = model.read(batch, readout=lambda hidden, head: (hidden, head))
        hidden, head = known[key]
        return readout(hidden.clone(), head)


def loss_of(model: BlockAssembly, task: Task, batch: Batch) -> LossTerm:
    """The task's loss of a batch."""
    term: LossTerm = _read(model, batch, lambda hidden, head: task.loss(hidden, head, batch))
    return term


def predictions_of(model: BlockAssembly, task: Task, batch: Batch) -> list[dict[str, Any]]:
    """The task's predictions for a batch."""
    rows: list[dict[str, Any]] = _read(model, batch, lambda hidden, head: task.predict(hidden, head, batch))
    return rows


def metrics_of(model: BlockAssembly, task: Task, tokenizer: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """The task's metrics over batches."""
    metrics = task.metrics(tokenizer)
    for batch in batches:
        update_metrics(metrics, model, task, batch)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def update_metrics(metrics: Mapping[str, Metric], model: BlockAssembly, task: Task, batch: Batch) -> None:
    """Add a batch to metrics."""
    _read(model, batch, lambda hidden, head: task.update(metrics, hidden, head, batch, task.loss(hidden, head, batch)))


@cache
def records_of(cls: type[Task], data: str | None) -> list[Any]:
    """Records to check a task with, from a file or from the task itself: the shortest ones of an evenly spread sample.

    Raises:
        Skip: the task embeds no records, and no file is given.
        DataError: the file cannot be used.
    """
    try:
        source = cls().stdlib() if data is None else read_records(data, cls.Record)
        records = [record for _, record in islice(source, MAX_READ)]
    except DataError:
        if data is not None:
            raise
        raise Skip("it embeds no records; give a JSONL file of records with data=, or --data on the command line") from None
    sample = records[::max(1, len(records) // (3 * MAX_RECORDS))]
    sizes = [len(record.model_dump_json()) for record in sample]
    shortest = sorted(range(len(sample)), key=lambda i: sizes[i])[:MAX_RECORDS]
    return [sample[i] for i in sorted(shortest)]


@cache
def _prepare(cls: type[Task], options_json: str, data: str | None) -> TaskHarness:
    """Prepare a task as a run does before its first step; the class need not be registered."""
    # copies, so that a task that changes its records does not change those that it is checked with later
    records, options = _copies(records_of(cls, data)), json.loads(options_json)
    learnt = json.loads(json.dumps(dict(build_task(cls, options).fit(records))))
    task = build_task(cls, {**options, **learnt})
    tokenizer = _tokenizer(tuple(text for record in records for text in task.texts(record)))
    learnt |= json.loads(json.dumps(dict(task.fit_tokenizer(tokenizer))))
    task = build_task(cls, {**options, **learnt})
    limit = None if task.packs else LIMIT
    examples = [example for record in records for example in task.examples(record, tokenizer, limit)]
    model = model_for(task, tokenizer.vocab_size, max_seq_len=LIMIT)
    _STATES[model] = {}
    return TaskHarness(task, options, learnt, tokenizer, Split(_copies(records_of(cls, data)), examples), model)


def _copies(records: Sequence[Any]) -> list[Any]:
    return [record.model_copy(deep=True) for record in records]


def build_task(cls: type[Task], options: Mapping[str, Any]) -> Task:
    """The task with options that are JSON data."""
    return cls(**arguments(cls, complete(cls, dict(options), cls.__name__)))


@cache
def _tokenizer(texts: tuple[str, ...]) -> Tokenizer:
    return Tokenizer.train(texts, VOCABULARY) if texts else NoTokenizer()


def require_equal_data(actual: Any, expected: Any, what: str, tolerance: float = METRIC_TOLERANCE) -> None:
    """Require that two JSON values are equal; numbers may differ by `tolerance`, times their size if that is above 1.

    Raises:
        Broken: they differ; the text says where.
    """
    if isinstance(expected, Mapping) and isinstance(actual, Mapping) and actual.keys() == expected.keys():
        for name, value in expected.items():
            require_equal_data(actual[name], value, f"{what} {name}", tolerance)
    elif _is_list(expected) and _is_list(actual) and len(actual) == len(expected):
        for i, (actual_item, expected_item) in enumerate(zip(actual, expected)):
            require_equal_data(actual_item, expected_item, f"{what} {i}", tolerance)
    elif isinstance(expected, float) and isinstance(actual, (int, float)):
        difference = abs(actual - expected)
        close = difference <= tolerance * max(1.0, abs(expected)) or (math.isnan(actual) and math.isnan(expected))
        require(close, f"{what}: {actual:.6g} and {expected:.6g}, {difference:.1e} apart")
    else:
        require(actual == expected, f"{what}: {actual!r:.80} and {expected!r:.80}")


def plain_example(example: Example) -> dict[str, Any]:
    """An example as plain data, to be compared with another."""
    fields = ("tokens", "target", "source", "documents", "following", "byte_counts")
    values = {field: getattr(example, field) for field in fields}
    return {field: value.tolist() if isinstance(value, Tensor) else copy.deepcopy(value) for field, value in values.items()}


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    source = {} if batch.source is None else {"source": batch.source.inputs, "source documents": batch.source.layout.documents,
                                              "source positions": batch.source.layout.positions}
    return {"inputs": batch.inputs, "documents": batch.layout.documents, "positions": batch.layout.positions, **source,
            **batch.targets}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
