"""Promises of a task about its metrics: that they are what their names say, and get better with better predictions."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.contracts.kit.case import Case, require
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.definitions import acceptable
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.contracts.kit.task_harness import METRIC_TOLERANCE, TaskHarness
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Task

ROUNDED = 1e-3
"""The error that is allowed of a metric, which may be computed in float32 from rounded predictions."""
STEPS, LEARNT, FEW_STEPS = 80, 0.3, 8
"""Steps in which hidden states learn a batch, the summed loss in nats below which no answer is wrong, since that costs log 2,
and steps after which a good part of the answers is right."""
PERFECT = ("accuracy", "exact_match", "subset_accuracy", "mrr", "recall_at_1")
"""Metrics that are 1 if all answers are right. F1 is 0 where no record has a label, and is not among them."""


@contract("task", examples=0.4)
def metrics_are_what_they_are_called(case: Case) -> None:
    """A metric with a well-known name (accuracy, exact_match, f1, mse, mae, r2, perplexity, bits_per_byte and others) has the
    value that its definition gives for the predictions and the right answers of the rows, or for their loss, also where some
    tokens or some rows are predicted well.

    In training: nothing shows; the figures are compared with those of other models, and mean something else.
    """
    harness = TaskHarness.drawn(case)
    records, rows = _records(case, harness)
    task, batch = harness.task, harness.task.collate(rows)
    hidden, head = harness.read(batch)
    well = case.choose("predicted well", ["no row", "some tokens", "some rows"])
    if well != "no row":  # without training, next to no token is predicted, and a mean of nothing but 0 is 0 in any way
        shape = hidden.shape[:2] if well == "some tokens" else (len(hidden), 1)
        chosen = case.tensor(*shape) > 0
        hidden = torch.where(chosen[..., None], _learning(task, batch, hidden, head, FEW_STEPS), hidden)
    with torch.no_grad():
        term, metrics = task.loss(hidden.clone(), head, batch), task.metrics(harness.tokenizer)
        task.update(metrics, hidden.clone(), head, batch, term)
        predictions = task.predict(hidden.clone(), head, batch)
    read = _Read(batch, hidden, head, term)
    for name, metric in metrics.items():
        value = float(metric.compute())
        values = (_by_loss(name, harness, read) or _by_answers(name, task, records, predictions, metrics.keys())
                  or _by_tokens(name, harness, read) or _by_vectors(name, read, len(rows)))
        if values and not any(abs(value - each) <= ROUNDED * max(1.0, abs(each)) for each in values):
            by_definition = " or ".join(f"{each:.6g}" for each in dict.fromkeys(values))
            raise Broken(f"its metric {name} is {value:.6g}; by the definition it is {by_definition}")


def _records(case: Case, harness: TaskHarness) -> tuple[list[Any], list[Example]]:
    """A few records and a row for each; rows without records if the task packs, or makes several examples of a record."""
    task = harness.task
    if task.packs or len(harness.split.examples) != len(harness.split.records):
        return [], harness.draw_rows(case, 3, 6)
    rows = harness.draw_rows(case, 3, 6)
    places = [next(i for i, example in enumerate(harness.split.examples) if example is row) for row in rows]
    return [harness.split.records[place] for place in places], rows


class _Read(NamedTuple):
    """A batch with hidden states for it, a head, and the loss."""

    batch: Batch
    hidden: Tensor
    head: Head
    loss: LossTerm


def _by_loss(name: str, harness: TaskHarness, read: _Read) -> list[float]:
    """The values that a metric may have if it is named after something that is computed from the loss of tokens."""
    nats, weight = float(read.loss.sum), float(read.loss.weight)
    if name == "perplexity":
        return [math.exp(nats / weight)]
    if name == "bits_per_token":
        return [nats / weight / math.log(2)]
    following = read.batch.targets.get("following")
    if name != "bits_per_byte" or following is None:
        return []
    lengths = torch.tensor(harness.tokenizer.byte_lengths())
    return [nats / math.log(2) / max(1, int(lengths[following[following >= 0]].sum()))]


def _by_answers(name: str, task: Task, records: Sequence[Any], predictions: Sequence[dict[str, Any]],
                names: Container[str]) -> list[float]:
    """The values that a metric may have if the predictions hold what the records do."""
    if all({"right", "tokens"} <= prediction.keys() for prediction in predictions) and name == "accuracy":
        return [sum(one["right"] for one in predictions) / max(1, sum(one["tokens"] for one in predictions))]
    pairs = answered(task, records, predictions)
    values = [acceptable(name, said, right, len(getattr(task, "labels", ())), beside_accuracy="accuracy" in names)
              for said, right in pairs.values()]
    return [each for some in values for each in some or ()]


def answered(task: Task, records: Sequence[Any],
             predictions: Sequence[dict[str, Any]]) -> dict[str, tuple[list[Any], list[Any]]]:
    """For each field of the answer that predictions have too: what they say, and what is right."""
    if task.Input is None or not records:
        return {}
    fields = task.Record.model_fields.keys() - task.Input.model_fields.keys()
    right = {field: [record.model_dump()[field] for record in records] for field in sorted(fields)}
    return {field: ([prediction[field] for prediction in predictions], values) for field, values in right.items()
            if all(field in prediction for prediction in predictions)}


def _by_tokens(name: str, harness: TaskHarness, read: _Read) -> list[float]:
    """The values that a metric may have if the task predicts the next token of each, which its targets call `following`."""
    following, size = read.batch.targets.get("following"), harness.tokenizer.vocab_size
    if following is None or harness.task.n_outputs(size) != size:
        return []
    with torch.no_grad():
        right = read.head(read.hidden).argmax(dim=-1) == following
    known = following >= 0
    values = {"accuracy": right[known].double().mean(), "exact_match": (right | ~known).all(dim=1).double().mean()}
    return [float(values[name])] if name in values else []


def _by_vectors(name: str, read: _Read, pairs: int) -> list[float]:
    """The values that a metric of search may have, with ties and with texts that occur twice counted in each usual way."""
    found = re.fullmatch(r"recall_at_(\d+)|mrr", name)
    if not found or len(read.batch.inputs) != 2 * pairs:
        return []
    with torch.no_grad():
        vectors = read.head.summary(read.hidden, read.batch.layout)
    if vectors is None:  # it is no search among whole texts
        return []
    texts = read.batch.inputs.tolist()
    values = []
    for halves in ((slice(None, pairs), slice(pairs, None)), (slice(None, None, 2), slice(1, None, 2))):  # the rows' order
        (anchors, positives), candidates = (vectors[half] for half in halves), texts[halves[1]]
        scores = anchors @ positives.T
        first = torch.tensor([candidates.index(text) for text in candidates])
        for columns in (torch.arange(pairs), torch.unique(first)):
            own = scores.diagonal()[:, None]
            above, level = (scores[:, columns] > own).sum(dim=1), (scores[:, columns] == own).sum(dim=1).clamp(min=1)
            for ranks in (above + level, above + 1):
                each = 1 / ranks.double() if name == "mrr" else (ranks <= int(found[1])).double()
                values.append(float(each.mean()))
    return values


@contract("task", examples=0.1)
def better_predictions_score_better(case: Case) -> None:
    """Where hidden states have learnt the targets of a batch, no metric is worse than before, in the direction that it declares
    (`higher_is_better`), and accuracy, exact_match and the like are 1.

    In training: early stopping keeps the worst checkpoint, or the best possible model is told to be a bad one.
    """
    harness = TaskHarness.drawn(case, {})
    rows = harness.draw_rows(case, 3, 5)
    batch, hidden, head, learnt = _learnt(harness, rows)
    task = harness.task
    metrics = [task.metrics(harness.tokenizer), task.metrics(harness.tokenizer)]
    for some, states in zip(metrics, (hidden, learnt), strict=True):
        with torch.no_grad():
            task.update(some, states, head, batch, task.loss(states, head, batch))
    for name, metric in metrics[1].items():
        before, after = float(metrics[0][name].compute()), float(metric.compute())
        if metric.higher_is_better is not None and not math.isnan(before) and not math.isnan(after):
            sign = 1 if metric.higher_is_better else -1
            require(sign * after >= sign * before - METRIC_TOLERANCE, f"{name}, of which it declares that higher is "
                    f"{'better' if sign > 0 else 'worse'}, goes from {before:.4g} to {after:.4g} while the targets are learnt")
        if name in PERFECT:
            require(after > 1 - ROUNDED, f"{name} is {after:.4g} where each target is predicted")


def _has_no_input(under_test: ComponentUnderTest) -> str:
    return "" if under_test.cls.Input else "it does not tell inputs from answers"


@contract("task", examples=0.1, skip=_has_no_input)
def predicts_what_it_learns(case: Case) -> None:
    """Where hidden states have learnt the targets of a batch, the predictions are the answers of the records.

    In training: nothing shows; a good model writes the names of other labels, or numbers in another unit.
    """
    harness = TaskHarness.drawn(case, {})
    records, rows = _records(case, harness)
    batch, _, head, learnt = _learnt(harness, rows)
    with torch.no_grad():
        predictions = harness.task.predict(learnt, head, batch)
    for field, (said, right) in answered(harness.task, records, predictions).items():
        numbers = [getattr(record, field) for record in harness.split.records]
        for one, other in zip(said, right, strict=True):
            require(_is_answer(one, other, numbers), f"where {field} {other!r:.80} is learnt, {one!r:.80} is predicted")


def _is_answer(said: Any, right: Any, all_right: Sequence[Any]) -> bool:
    """Whether a prediction is the right answer, up to the rounding of numbers, the order of a list, and words cut off."""
    if isinstance(right, float):
        return not isinstance(said, (int, float)) or abs(said - right) <= 0.5 * statistics.pstdev(all_right)
    if isinstance(right, list) and isinstance(said, list):
        in_order = len(said) == len(right) and all(one in (None, other) for one, other in zip(said, right, strict=True))
        return in_order or sorted(map(str, said)) == sorted(map(str, right))
    return type(said) is not type(right) or said == right


def _learnt(harness: TaskHarness, rows: Sequence[Example]) -> tuple[Batch, Tensor, Head, Tensor]:
    """A batch, the hidden states that the model has for it, the head, and hidden states for which the loss is as good as 0.

    Raises:
        Skip: the loss did not fall that far; it may have a floor above 0.
    """
    batch = harness.task.collate(rows)
    hidden, head = harness.read(batch)
    learnt = _learning(harness.task, batch, hidden, head, STEPS)
    with torch.no_grad():
        loss = float(harness.task.loss(learnt, head, batch).sum)
    if not loss < LEARNT:
        raise Skip(f"in {STEPS} steps its loss falls to {loss:.2g} only, and may be unable to fall further")
    return batch, hidden, head, learnt


def _learning(task: Task, batch: Batch, hidden: Tensor, head: Head, steps: int) -> Tensor:
    """Hidden states that learn the targets of a batch for some steps; unchanged if the loss does not depend on them."""
    learnt = hidden.clone().requires_grad_()
    optimizer = torch.optim.Adam([learnt], lr=0.5)
    for _ in range(steps):
        loss = task.loss(learnt, head, batch).sum
        if not loss.requires_grad:
            break
        learnt.grad, = torch.autograd.grad(loss, learnt)
        optimizer.step()
    return learnt.detach()
