"""Promises of a task about its data: records, examples, batches, and the options that it learns from records."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit.case import Case, picture, require, require_equal, seeded, undisturbed
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.contracts.kit.task_harness import (
    LIMIT,
    TaskHarness,
    build_task,
    loss_of,
    loss_tolerance,
    plain_example,
    require_equal_data,
    tensors_of,
    update_metrics,
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
    """A record that is written as a line of JSON and read again is the same, and its input can be read without its label.

    In training: the task learns from other records than those in the file.
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
    """A batch depends on its examples only, and not on the random state of the process, which `collate` leaves unchanged.

    In training: a resumed run is not the one that was interrupted, and held-out data differ from pass to pass.
    """
    harness = TaskHarness.drawn(case)
    rows = [replace(row, draw=case.draw("draw", st.integers(0, 3))) for row in harness.draw_rows(case)]
    batches = []
    for seed in (1, 2):
        with seeded(seed):
            before = str(torch.get_rng_state().tolist()), random.getstate(), str(np.random.get_state())
            batches.append(harness.task.collate(rows))
            after = str(torch.get_rng_state().tolist()), random.getstate(), str(np.random.get_state())
            require(after == before, "collate draws from the random numbers of the process")
    first, second = map(tensors_of, batches)
    for name, value in first.items():
        require(torch.equal(value, second[name]), f"collated twice, {name} differs")


@contract("task", examples=0.3)
def leaves_its_data_alone(case: Case) -> None:
    """No record, example, batch or hidden state is changed by what is made of it. Evaluation draws no random number, changes no
    setting of the process and replaces no function of torch; a batch has one loss each time, with gradients or without.

    In training: the second epoch has other data than the first, or what is measured depends on what was computed before.
    """
    harness = TaskHarness.drawn(case)
    task, record, limit = harness.task, harness.draw_record(case), None if harness.task.packs else LIMIT
    with undisturbed("using it"), seeded(1):
        state, line = torch.get_rng_state(), record.model_dump_json()
        list(task.texts(record))
        task.examples(record, harness.tokenizer, limit)
        if task.Input is not None:
            task.question(record, harness.tokenizer)
        require(record.model_dump_json() == line, "making an example of a record changes the record")
        rows = copy.deepcopy(harness.draw_rows(case))  # or they would be changed already when this is run again
        before = [plain_example(row) for row in rows]
        batch = task.collate(rows)
        require([plain_example(row) for row in rows] == before, "making a batch of examples changes the examples")
        hidden, head = harness.read(batch)
        kept, states, term = {name: value.clone() for name, value in tensors_of(batch).items()}, hidden.clone(), None
        for what in ("computing the loss", "computing the loss again", "measuring", "predicting"):
            with torch.no_grad():
                if what == "measuring":
                    update_metrics(task.metrics(harness.tokenizer), harness.model, task, batch)
                elif what == "predicting":
                    task.predict(hidden, head, batch)
                else:
                    again = task.loss(hidden, head, batch).sum
                    require(term is None or torch.equal(again, term), f"a batch has the loss {term}, and then {again}")
                    term = again
            require(torch.equal(hidden, states), f"{what} changes the hidden states")
            changed = [name for name, value in tensors_of(batch).items() if not torch.equal(value, kept[name])]
            require(not changed, f"{what} changes {', '.join(changed)} of the batch")
        require(torch.equal(torch.get_rng_state(), state), "in evaluation it draws from torch's random numbers")
        assert term is not None
        recorded = task.loss(hidden.requires_grad_(), head, batch).sum.detach()
        require_equal_data(float(recorded), float(term), "the loss with gradients and without", loss_tolerance(term))


@contract("task", examples=0.2)
def what_it_learnt_makes_it_again(case: Case) -> None:
    """Everything that `fit` and `fit_tokenizer` learn is in the options that they return. A task that is rebuilt from these
    options has the same examples and losses, and learns nothing more.

    In training: a saved model cannot be used, or predicts the wrong labels.
    """
    harness = TaskHarness.drawn(case)
    cls = type(harness.task)
    unfitted, rebuilt = build_task(cls, harness.options), build_task(cls, {**harness.options, **harness.learnt})
    before = repr(vars(unfitted)), repr(vars(rebuilt))
    lines = [record.model_dump_json() for record in harness.split.records]
    unfitted.fit(harness.split.records)
    require([record.model_dump_json() for record in harness.split.records] == lines, "fitting changes the records")
    refitted = json.loads(json.dumps({**rebuilt.fit(harness.split.records), **rebuilt.fit_tokenizer(harness.tokenizer)}))
    require((repr(vars(unfitted)), repr(vars(rebuilt))) == before, "fitting changes the task; return what it learns instead")
    different = {name: value for name, value in refitted.items() if value != harness.learnt.get(name)}
    require(not different, f"the rebuilt task learns other options: {different!r:.200}")
    limit = None if rebuilt.packs else LIMIT
    record = harness.draw_record(case)
    examples = list(harness.task.examples(record, harness.tokenizer, limit))
    rebuilt_examples = list(rebuilt.examples(record, harness.tokenizer, limit))
    require(len(rebuilt_examples) == len(examples), "the rebuilt task has another number of examples")
    batch = rebuilt.collate(harness.rows(rebuilt_examples[:3]))
    expected = harness.loss(harness.rows(examples[:3])).sum
    require_equal(loss_of(harness.model, rebuilt, batch).sum, expected, "the loss of the rebuilt task")


@contract("task", proves=["packs"], skip=_does_not_pack)
def packing_changes_nothing(case: Case) -> None:
    """Texts that share a row are separate documents in the batch, and have the losses that they have alone.

    In training: the last token of a text is trained to predict the first token of the next, and texts see each other.

    Seen: transformers#47394, where a loss leaked targets across the rows of a batch.
    """
    harness = TaskHarness.drawn(case)
    texts = [harness.task.cut(example, LIMIT // 4) for example in harness.draw_examples(case, 2, 4)]
    row = PackedRows(texts, LIMIT)[0]
    batch = harness.task.collate([row])
    assert row.documents is not None
    expected = picture(Layout.from_documents(row.documents[None]))
    require(picture(batch.layout) == expected, f"texts {expected} are batched as {picture(batch.layout)}")
    pieces = [loss_of(harness.model, harness.task, _columns(batch, columns)) for columns in _documents(batch.layout)]
    whole = loss_of(harness.model, harness.task, batch)
    require_equal_data(float(whole.sum), sum(float(piece.sum) for piece in pieces),
                       "the loss of a row and of its texts cut out", loss_tolerance(whole.sum))
    draws = [tensors_of(harness.task.collate([replace(row, draw=draw)])) for draw in range(6)]
    random_targets = any(not torch.equal(value, draw[name]) for draw in draws for name, value in draws[0].items())
    if not random_targets:  # hidden tokens, for example, are drawn for a row as a whole: other rows would have others
        alone = harness.loss([PackedRows([text], LIMIT)[0] for text in texts])
        require_equal_data(float(whole.sum), float(alone.sum), "the loss of texts in one row and in rows of their own",
                           loss_tolerance(whole.sum))


def _documents(layout: Layout) -> list[Tensor]:
    """The columns of each document of the one row."""
    documents = layout.documents[0]
    return [(documents == number).nonzero()[:, 0] for number in sorted(set(documents.tolist())) if number]


def _columns(batch: Batch, columns: Tensor) -> Batch:
    """A batch of one text that is made of some columns of the batch."""
    length = batch.inputs.shape[1]
    targets = {name: value[:, columns] if value.ndim > 1 and value.shape[1] == length else value
               for name, value in batch.targets.items()}
    return Batch(batch.inputs[:, columns], Layout.full(1, len(columns)), targets)


@contract("task", proves=["has_source"], skip=_has_no_source)
def the_source_is_read(case: Case) -> None:
    """A task with a source has one source for each row of a batch, and the loss of a row depends on its source.

    In training: the decoder learns to write without reading the source.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    batch = harness.task.collate(rows)
    if batch.source is None:
        raise Broken("its batches have no source")
    require(len(batch.source.inputs) == len(batch.inputs), f"{len(batch.source.inputs)} sources for {len(batch.inputs)} rows")
    size = max(2, harness.tokenizer.vocab_size)
    changed = [replace(row, source=[(int(token) + 1) % size for token in row.source or ()]) for row in rows]
    require(not torch.equal(harness.loss(rows).sum, harness.loss(changed).sum), "the loss is the same for other sources")
