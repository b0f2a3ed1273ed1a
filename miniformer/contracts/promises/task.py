"""Promises of a task about its loss, its metrics and its predictions."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import torch
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from torch import Tensor

from miniformer.contracts.kit.case import Case, require
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.contracts.kit.task_harness import CUT, LIMIT, TaskHarness, loss_of, loss_tolerance, require_equal_data
from miniformer.data.packing import PackedRows
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Task
from miniformer.tasks.metrics import LossRatio, Perplexity


def _looks_ahead(under_test: ComponentUnderTest) -> str:
    predicts_next = under_test.cls.causal or under_test.cls.has_source
    return "" if predicts_next else "it trains a model that sees later tokens, so it does not predict the next one"


@contract("task", proves=["additive"])
def losses_add_up(case: Case) -> None:
    """If it declares `additive`, the sum and the weight of a batch's loss are the totals of its parts, however it is split.

    In training: gradient accumulation and data parallelism train on another loss than one big batch does, and a short text
    counts more in a small batch.

    Seen: transformers#34191, where the loss under gradient accumulation was a mean of means.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case) if harness.task.additive else harness.rows(harness.split.examples[:6])
    where = case.draw("split", st.integers(1, max(1, len(rows) - 1)))
    whole = harness.loss(rows)
    parts = [harness.loss(part) for part in (rows[:where], rows[where:]) if part]
    for name, value in whole._asdict().items():
        require(isinstance(value, Tensor) and value.ndim == 0, f"the {name} of its loss is {value!r:.80}; expected a number")
    require(float(whole.weight) >= 0 and bool(whole.sum.isfinite()), f"its loss is {whole.sum:g}, its weight {whole.weight:g}")
    weight, total = sum(float(part.weight) for part in parts), sum(float(part.sum) for part in parts)
    require(weight == float(whole.weight), f"the parts weigh {weight:g} together, and the whole {float(whole.weight):g}")
    difference = abs(total - float(whole.sum))
    adds_up = difference <= loss_tolerance(whole.sum) * max(1.0, abs(total))
    if harness.task.additive:
        require(adds_up, f"the losses of the parts add up to {total:.6g}, and that of the whole is {float(whole.sum):.6g}, "
                         f"{difference:.1e} apart")
    elif len(rows) > 2:
        require(not adds_up, "it declares `additive` False, and its losses add up")


@contract("task")
def padding_does_not_count(case: Case) -> None:
    """A row has the same loss, metrics and prediction by itself and padded to the length of longer rows.

    In training: the weight of a text depends on the length of the other texts in its batch, and an accuracy that counts padding
    looks better than it is.

    Seen: jsbaan/transformer-from-scratch#7, where the accuracy counted padding.
    """
    harness = TaskHarness.drawn(case)
    if harness.task.packs:
        texts = [harness.task.cut(example, CUT) for example in harness.draw_examples(case)]
        unpadded = [PackedRows([text], len(text.tokens))[0] for text in texts]
        padded = [PackedRows([text], LIMIT)[0] for text in texts]
    else:  # rows of different lengths are padded when they share a batch
        unpadded = padded = harness.draw_rows(case)
    if harness.task.additive:
        whole, parts = harness.loss(padded), [harness.loss([row]) for row in unpadded]
        for name in ("weight", "sum"):
            total = sum(float(getattr(part, name)) for part in parts)
            require_equal_data(float(getattr(whole, name)), total, f"the {name} of the loss padded and not",
                               loss_tolerance(whole.sum))
    require_equal_data(harness.measure(padded), harness.measure(*([row] for row in unpadded)), "padded and not: metric")
    singly = [prediction for row in unpadded for prediction in harness.predictions([row])]
    require_equal_data(harness.predictions(padded), singly, "padded and not: prediction")


@contract("task", examples=0.5)
def metrics_do_not_hang_on_batching(case: Case) -> None:
    """Metrics do not depend on the order of the rows or on how they are cut into batches, and each pass starts from zero.

    In training: the best checkpoint is chosen by a number that changes with the batch size.

    Seen: transformers#24839 and vak#595, where the last, smaller batch counted as much as the others.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case, 3, 6)
    order = case.draw("order", st.permutations(rows).map(list))
    where = case.draw("split", st.integers(1, max(1, len(rows) - 1)))
    case.story["order"] = [next(i for i, row in enumerate(rows) if row is reordered) for reordered in order]
    whole = harness.measure(rows)
    require(bool(whole), "it has no metrics")
    batches = [part for part in (order[:where], order[where:]) if part]
    require_equal_data(harness.measure(*batches), whole, "in other batches: metric")
    harness.measure(rows[:1])  # other rows: what a metric keeps of equal ones would leave its mean as it is
    require_equal_data(harness.measure(rows), whole, "measured a second time: metric")


@contract("task", examples=0.5)
def metrics_match_the_loss(case: Case) -> None:
    """A metric that is computed from the loss agrees with the losses of the single rows, added up.

    In training: perplexity and loss contradict each other, and a comparison with another model is wrong.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    metrics = harness.task.metrics(harness.tokenizer)
    require("loss" not in metrics, "it has a metric called 'loss', which is the name of the mean loss that every run measures")
    ratios = {name: metric for name, metric in metrics.items() if isinstance(metric, LossRatio)}
    if not ratios or not harness.task.additive:
        raise Skip("none of its metrics is computed from its loss")
    terms = [harness.loss([row]) for row in rows]
    nats, weight = sum(float(term.sum) for term in terms), sum(float(term.weight) for term in terms)
    harness.update(metrics, rows)
    for name, metric in ratios.items():
        require_equal_data(float(metric.nats), nats, f"the nats of {name}")
        if isinstance(metric, Perplexity):
            require_equal_data(float(metric.compute()), math.exp(nats / weight), name)


@contract("task")
def predicts_every_row_in_order(case: Case) -> None:
    """Every row has a prediction, in the order of the rows, and each prediction is a JSON object.

    In training: nothing shows; predictions are written next to the wrong records.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    predictions = harness.predictions(rows)
    require(len(predictions) == len(rows), f"{len(predictions)} predictions for {len(rows)} rows")
    order = case.draw("order", st.permutations(range(len(rows))))
    reordered = harness.predictions([rows[i] for i in order])
    require_equal_data(reordered, [predictions[i] for i in order], "in another order: prediction")
    require_equal_data([harness.predictions([row])[0] for row in rows], predictions, "one by one: prediction")
    for prediction in predictions:
        require(isinstance(prediction, dict), f"a prediction is {prediction!r:.80}; expected a dict")
        try:
            reread = json.loads(json.dumps(prediction, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise Broken(f"a prediction is no JSON: {error}") from None
        require(reread == prediction, f"a prediction changes on its way through JSON: {prediction!r:.80} and {reread!r:.80}")


@contract("task", examples=0.4)
def answers_know_no_labels(case: Case) -> None:
    """What the model answers about a record does not depend on the record's label: the answer is the same without a label, and
    with the label of another record.

    In training: the task is solved at once, with results too good to be true, and the model fails on the first unlabelled text.
    """
    harness = TaskHarness.drawn(case)
    task = harness.task
    record, labelled = harness.draw_record(case), harness.draw_record(case, "record of the other label")
    unlabelled = (task.Input or task.Record).model_validate(json.loads(record.model_dump_json()))
    question = task.question(unlabelled, harness.tokenizer)
    question = question if task.packs else task.cut(question, LIMIT)
    expected = harness.answers(harness.rows([question]))
    variants = {"with its label": record, "with another label": _with_label_of(task, record, labelled)}
    for what, variant in variants.items():
        if variant is None:
            continue
        example = task.examples(variant, harness.tokenizer, None if task.packs else LIMIT)[0]
        if task.Input is None and question.source is not None:  # the task continues a text, and here all of it is the source
            example = replace(example, source=question.source)
        if question.source is not None and example.source is not None:
            require_equal_data(list(map(int, example.source)), list(map(int, question.source)),
                               f"{what} and without: token of the source")
        require_equal_data(harness.answers(harness.rows([example])), expected, f"{what} and without: answer")


def _with_label_of(task: Task, record: BaseModel, labelled: BaseModel) -> BaseModel | None:
    """The record with the label of another; None if the label does not fit, or the task does not tell inputs from labels."""
    if task.Input is None:
        return None
    answer = labelled.model_dump(mode="json", exclude=set(task.Input.model_fields))
    try:
        return task.Record.model_validate({**record.model_dump(mode="json"), **answer})
    except ValidationError:
        return None


@contract("task", examples=0)  # one example is enough, since it holds all records
def baselines_speak_in_its_metrics(case: Case) -> None:
    """The results of its baselines have the names of the task's metrics, and are finite numbers.

    In training: a baseline is shown beside the result and cannot be compared with it.
    """
    harness = TaskHarness.drawn(case)
    metrics = {"loss", *harness.task.metrics(harness.tokenizer)}
    baselines = harness.task.baselines(harness.split, harness.split, harness.tokenizer)
    for name, values in baselines.items():
        unknown = sorted(values.keys() - metrics)
        require(bool(values) and not unknown, f"baseline {name!r} reports {', '.join(unknown) or 'nothing'}; "
                                              f"the metrics are {', '.join(sorted(metrics))}")
        require(all(math.isfinite(value) for value in values.values()), f"baseline {name!r} reports {values}")
    json.dumps(baselines)


@contract("task", examples=0.1, skip=_looks_ahead)
def labels_are_shifted_once(case: Case) -> None:
    """The loss is lowest for hidden states that predict the next token: higher for the current token, and for the one after the
    next.

    In training: the model learns to predict the token after the next, or to repeat the current one, while the loss falls.

    Seen: transformers#46898 and #47394, where labels were shifted twice.
    """
    harness = TaskHarness.drawn(case)
    size = harness.tokenizer.vocab_size
    if harness.task.input_dim is not None or harness.task.n_outputs(size) != size:
        raise Skip("it does not predict tokens")
    batch = harness.task.collate(harness.rows(harness.split.examples[:12]))
    inputs, documents = batch.inputs, batch.layout.documents
    losses = []
    for shift in range(3):
        ahead = inputs.roll(-shift, dims=1)
        known = (documents.roll(-shift, dims=1) == documents) & (torch.arange(inputs.shape[1]) < inputs.shape[1] - shift)
        hidden = 20.0 * torch.nn.functional.one_hot(ahead, size).double() * known[:, :, None]
        losses.append(float(harness.task.loss(hidden, _TokenScores(size, size), batch).sum))
    case.story["losses of predicting the current token, the next, the one after"] = [round(loss, 1) for loss in losses]
    require(losses[1] < 0.8 * min(losses[0], losses[2]), "predicting the next token does not have the lowest loss")


class _TokenScores(Head):
    """A head that takes hidden states as the scores of tokens."""

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return x if select is None else x[select]


@contract("task", examples=0.2)
def a_few_steps_lower_the_loss(case: Case) -> None:
    """With its default options, a few optimizer steps on a few rows lower their loss.

    In training: the loss depends on nothing that can be learnt, or its sign is wrong.
    """
    harness = TaskHarness.drawn(case, {})
    batch = harness.task.collate(harness.draw_rows(case, 3, 5))
    if not loss_of(harness.model, harness.task, batch).weight:
        reject()
    model = copy.deepcopy(harness.model)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(12):
        term = model.read(batch, readout=lambda hidden, head: harness.task.loss(hidden, head, batch))
        require(term.sum.requires_grad, "its loss has no gradient")
        optimizer.zero_grad()
        (term.sum / term.weight).backward()
        optimizer.step()
        losses.append(float(term.sum.detach()) / float(term.weight))
    require(losses[-1] < losses[0], f"the loss goes from {losses[0]:.4g} to {losses[-1]:.4g}")
