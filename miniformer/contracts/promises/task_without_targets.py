"""The promise of a task about rows in which nothing is left to predict, such as those of texts that are too short."""

from __future__ import annotations

import json
from collections.abc import Sequence

from miniformer.contracts.kit.case import Case, require
from miniformer.contracts.kit.properties import Skip, contract
from miniformer.contracts.kit.task_harness import LIMIT, TaskHarness, loss_of, metrics_of, require_equal_data
from miniformer.data.packing import PackedRows
from miniformer.kernel.task import Batch, Example, LossTerm, shortened

from .task_limits import loss_and_gradient


@contract("task", examples=0.2)
def rows_without_targets_count_nothing(case: Case) -> None:
    """A row that is so short that nothing in it is predicted has a loss of 0 with the weight 0, which has a gradient, and in a
    batch of its own it changes no metric. So have records without labels that weigh nothing, and a row whose tokens all have
    the target that padding has, if that is negative.

    In training: a batch of short texts divides by zero, or ends the run in the middle of an epoch.
    """
    harness = TaskHarness.drawn(case)
    task = harness.task
    batches = [task.collate(rows) for rows in _shortest_rows(case, harness)]
    empty = [batch for batch in batches if not float(loss_of(harness.model, task, batch).weight)]
    unlabelled = _without_labels(case, harness)
    padded = [] if empty else _with_targets_of_padding(harness, task.collate(harness.rows(harness.split.examples[:2])))
    if not empty and not unlabelled and not padded:
        raise Skip("every example has something to predict, however short it is")
    for batch in empty[:1] + unlabelled + padded:
        hidden, head = harness.read(batch)
        term, gradient = loss_and_gradient(task, hidden, head, batch)
        require(float(term.sum) == 0, f"with the weight 0, its loss is {float(term.sum):g}")
        require(bool(gradient.isfinite().all()), "its gradient is not finite")
        require(_recorded_loss(harness, batch).sum.requires_grad, "its loss has no gradient, so that a run ends there")
    batches = [task.collate(harness.draw_rows(case)), *empty[:1]]
    expected, actual = (metrics_of(harness.model, task, harness.tokenizer, some) for some in (batches[:1], batches))
    require_equal_data(actual, expected, "with a batch in which nothing is predicted: metric")


def _recorded_loss(harness: TaskHarness, batch: Batch) -> LossTerm:
    """The loss of a batch as a run has it, with gradients."""
    term: LossTerm = harness.model.read(batch, readout=lambda hidden, head: harness.task.loss(hidden, head, batch))
    return term


def _without_labels(case: Case, harness: TaskHarness) -> list[Batch]:
    """The batch of a record without its label, which may be unknown; none if it has a loss, or the task has none for it."""
    task = harness.task
    if task.Input is None or task.packs:
        return []
    record = task.Input.model_validate(json.loads(harness.draw_record(case, "record without its label").model_dump_json()))
    batch = task.collate([shortened(task, task.question(record, harness.tokenizer), LIMIT)])
    try:
        weight = float(loss_of(harness.model, task, batch).weight)
    except Exception:  # it is asked for answers, and nothing says that it has a loss
        return []
    return [] if weight else [batch]


def _shortest_rows(case: Case, harness: TaskHarness) -> list[Sequence[Example]]:
    """The rows that a record's example makes when it is cut to its first few tokens."""
    task, record, rows = harness.task, harness.draw_record(case), list[Sequence[Example]]()
    for limit in (1, 2, 3):
        try:
            if task.packs:
                rows.append([PackedRows([task.cut(task.encode(record, harness.tokenizer), limit)], LIMIT)[0]])
            else:
                rows.append(task.examples(record, harness.tokenizer, limit)[:2])
        except ValueError:  # too short for this task
            continue
    return rows


def _with_targets_of_padding(harness: TaskHarness, batch: Batch) -> list[Batch]:
    """The batch with the target of padding at all tokens, if padding has a negative one and the loss then has the weight 0."""
    padding, targets = ~batch.layout.real, dict(batch.targets)
    for name, value in batch.targets.items():
        if value.shape == padding.shape and not value.is_floating_point() and bool((value[padding] < 0).any()):
            targets[name] = value[padding].min().expand_as(value)
    unlabelled = Batch(batch.inputs, batch.layout, targets, batch.source)
    try:
        return [] if float(loss_of(harness.model, harness.task, unlabelled).weight) else [unlabelled]
    except ValueError:  # it refuses such a batch
        return []
