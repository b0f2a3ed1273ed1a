"""What a task promises of its data: records, examples, the batches that are made of them, and what is learnt from them."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit.case import Case, picture, require, require_equal, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.contracts.kit.task_harness import (
    CUT,
    LIMIT,
    TaskHarness,
    build_task,
    loss_of,
    loss_tolerance,
    require_equal_data,
)
from miniformer.data.packing import PackedRows
from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Batch


def _has_no_source(under_test: ComponentUnderTest) -> str:
    return "" if under_test.cls.has_source else "it does not declare `has_source`"


def _does_not_pack(under_test: ComponentUnderTest) -> str:
    return "" if under_test.cls.packs else "it does not declare `packs`"


@contract("task", examples=0.5)
def records_survive_json(case: Case) -> None:
    """A record written as a line of JSON and read again is the same record, and can be asked about without its answer.

    In training: what a file says and what the task learns are not the same.
    """
    harness = TaskHarness.drawn(case)
    record = harness.draw_record(case)
    line = record.model_dump_json()
    again = harness.task.Record.model_validate(json.loads(line))
    require(again == record, f"read again it is {again!r:.200}")
    if harness.task.Input is not None:
        require(harness.task.Input.model_fields.keys() < harness.task.Record.model_fields.keys(),
                "its Input has all the fields of its Record, so that nothing is left to be predicted")
        harness.task.Input.model_validate(json.loads(line))


@contract("task", examples=0.5)
def collates_the_same_each_time(case: Case) -> None:
    """A batch is a function of its examples: it is the same whatever the random state, which it leaves as it was.

    In training: a resumed run is not the run that was interrupted, and held-out data are others in each pass.
    """
    harness = TaskHarness.drawn(case)
    rows = [replace(row, draw=case.draw("draw", st.integers(0, 3))) for row in harness.draw_rows(case)]
    batches = []
    for seed in (1, 2):
        with seeded(seed):
            state, others = torch.get_rng_state(), (random.getstate(), str(np.random.get_state()))
            batches.append(harness.task.collate(rows))
            require(torch.equal(torch.get_rng_state(), state) and (random.getstate(), str(np.random.get_state())) == others,
                    "collate draws from the random numbers of the whole process")
    one_by_name, other = map(_tensors, batches)
    for name, value in one_by_name.items():
        require(torch.equal(value, other[name]), f"collated twice, {name} differs")


def _tensors(batch: Batch) -> dict[str, Tensor]:
    source = {} if batch.source is None else {"source": batch.source.inputs, "source documents": batch.source.layout.documents}
    return {"inputs": batch.inputs, "documents": batch.layout.documents, "positions": batch.layout.positions, **source,
            **batch.targets}


@contract("task", examples=0.2)
def what_it_learnt_makes_it_again(case: Case) -> None:
    """Everything that `fit` and `fit_tokenizer` learn is in the options that they return: made again of them, it gives the
    same examples and losses, and it learns nothing more.

    In training: a saved model cannot be used, or says the wrong labels.
    """
    harness = TaskHarness.drawn(case)
    fresh, again = build_task(type(harness.task), harness.options), build_task(type(harness.task), {**harness.options, **harness.learnt})
    before = repr(vars(fresh)), repr(vars(again))
    fresh.fit(harness.split.records)
    more = {**again.fit(harness.split.records), **again.fit_tokenizer(harness.tokenizer)}
    require((repr(vars(fresh)), repr(vars(again))) == before, "fitting changes the task; what is learnt is to be returned only")
    more = {name: value for name, value in json.loads(json.dumps(more)).items() if value != harness.learnt.get(name)}
    require(not more, f"made again it learns other options: {more!r:.200}")
    limit = None if again.packs else LIMIT
    record = harness.draw_record(case)
    examples = [list(task.examples(record, harness.tokenizer, limit)) for task in (again, harness.task)]
    require(len(examples[0]) == len(examples[1]), "made again it gives another number of examples")
    rows = [harness.rows(found[:3]) for found in examples]
    require_equal(loss_of(harness.model, again, again.collate(rows[0])).sum, harness.loss(rows[1]).sum, "the loss of a task made again")


@contract("task", examples=0.5)
def keeps_to_the_limit(case: Case) -> None:
    """A batch is no longer than the limit that examples are asked for with, in inputs and in source.

    In training: the model refuses a text that is longer than its positions, in the middle of a run.
    """
    harness = TaskHarness.drawn(case)
    limit = case.draw("limit", st.integers(4, LIMIT))
    record = harness.draw_record(case)
    examples = list(harness.task.examples(record, harness.tokenizer, None if harness.task.packs else limit))
    require(bool(examples), "a record gives no example")
    if harness.task.packs:
        examples = [PackedRows([harness.task.cut(example, CUT) for example in examples], limit)[0]]
    batch = harness.task.collate(examples[:4])
    for name, layout in (("inputs", batch.layout), ("source", batch.source and batch.source.layout)):
        require(layout is None or layout.shape[1] <= limit, f"{name} of {layout and layout.shape[1]} tokens; at most {limit}")


@contract("task", proves=["packs"], skip=_does_not_pack)
def packing_changes_nothing(case: Case) -> None:
    """Texts that share a row are batched as documents of their own, and give the loss that they give alone.

    In training: the last token of a text is made to say the first of another, and texts see their neighbours.

    Seen: transformers#47394, where a loss leaked targets across the rows of a batch.
    """
    harness = TaskHarness.drawn(case)
    texts = [harness.task.cut(example, LIMIT // 4) for example in harness.draw_examples(case, 2, 4)]
    row = PackedRows(texts, LIMIT)[0]
    batch = harness.task.collate([row])
    assert row.documents is not None
    given = picture(Layout.from_documents(row.documents[None]))
    require(picture(batch.layout) == given, f"texts {given} are batched as {picture(batch.layout)}")
    pieces = [loss_of(harness.model, harness.task, _columns(batch, columns)) for columns in _documents(batch.layout)]
    whole = loss_of(harness.model, harness.task, batch)
    require_equal_data(float(whole.sum), sum(float(piece.sum) for piece in pieces), "the loss of a row and of its texts cut out",
         loss_tolerance(whole.sum))
    draws = [harness.task.collate([replace(row, draw=draw)]) for draw in range(6)]
    if all(torch.equal(a, b) for other in draws[1:] for a, b in zip(_tensors(draws[0]).values(), _tensors(other).values())):
        alone = harness.loss([PackedRows([text], LIMIT)[0] for text in texts])  # what is drawn for a row is not drawn for its parts
        require_equal_data(float(whole.sum), float(alone.sum), "the loss of texts in one row and in rows of their own", loss_tolerance(whole.sum))


def _documents(layout: Layout) -> list[Tensor]:
    """The columns of each document of the one row."""
    documents = layout.documents[0]
    return [(documents == number).nonzero()[:, 0] for number in sorted(set(documents.tolist())) if number]


def _columns(batch: Batch, columns: Tensor) -> Batch:
    """Some columns of a batch as a batch of one text."""
    length = batch.inputs.shape[1]
    targets = {name: value[:, columns] if value.ndim > 1 and value.shape[1] == length else value
               for name, value in batch.targets.items()}
    return Batch(batch.inputs[:, columns], Layout.full(1, len(columns)), targets)


@contract("task", proves=["has_source"], skip=_has_no_source)
def the_source_is_read(case: Case) -> None:
    """A task with a source batches one for each row, and what is said of a row hangs on it.

    In training: the decoder learns to write without reading.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    batch = harness.task.collate(rows)
    if batch.source is None:
        raise Broken("its batches have no source")
    require(len(batch.source.inputs) == len(batch.inputs), f"{len(batch.source.inputs)} sources for {len(batch.inputs)} rows")
    size = max(2, harness.tokenizer.vocab_size)
    others = [replace(row, source=[(int(token) + 1) % size for token in row.source or ()]) for row in rows]
    require(not torch.equal(harness.loss(rows).sum, harness.loss(others).sum), "the loss is the same for other sources")
