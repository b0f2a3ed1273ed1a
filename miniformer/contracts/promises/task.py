"""What a task promises: losses that add up, padding that does not count, predictions for every row that know no answer."""

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
    says_next = under_test.cls.causal or under_test.cls.has_source
    return "" if says_next else "it trains a model that sees later tokens, so there is no next one to say"


@contract("task", proves=["additive"])
def losses_add_up(case: Case) -> None:
    """Sum and weight of the loss of a batch are those of its parts added up, however it is split, if it declares `additive`.

    In training: accumulation and data parallelism train on another loss than one big batch does, and a short text counts more
    in a small batch.

    Seen: transformers#34191, where the loss under gradient accumulation was a mean of means.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case) if harness.task.additive else harness.rows(harness.split.examples[:6])
    where = case.draw("split", st.integers(1, max(1, len(rows) - 1)))
    whole, parts = harness.loss(rows), [harness.loss(part) for part in (rows[:where], rows[where:]) if part]
    for name, value in whole._asdict().items():
        require(isinstance(value, Tensor) and value.ndim == 0, f"the {name} of its loss is {value!r:.80}; expected a number")
    require(float(whole.weight) >= 0 and bool(whole.sum.isfinite()), f"its loss is {whole.sum:g}, its weight {whole.weight:g}")
    weight, total = (sum(float(part[i]) for part in parts) for i in (1, 0))
    require(weight == float(whole.weight), f"the parts weigh {weight:g} together, and the whole {float(whole.weight):g}")
    off = abs(total - float(whole.sum))
    adds_up = off <= loss_tolerance(whole.sum) * max(1.0, abs(total))
    if harness.task.additive:
        require(adds_up, f"the losses of the parts add up to {total:.6g}, and that of the whole is {float(whole.sum):.6g}, "
                         f"{off:.1e} apart")
    elif len(rows) > 2:
        require(not adds_up, "it declares that its losses do not add up, and they do")


@contract("task")
def padding_does_not_count(case: Case) -> None:
    """A row gives the same loss, metrics and prediction as it is and padded to the length of longer ones.

    In training: what a text counts hangs on the length of its neighbours, and an accuracy over padding looks better than it
    is.

    Seen: jsbaan/transformer-from-scratch#7, where the accuracy counted padding.
    """
    harness = TaskHarness.drawn(case)
    if harness.task.packs:
        texts = [harness.task.cut(example, CUT) for example in harness.draw_examples(case)]
        apart, padded = ([PackedRows([text], length or len(text.tokens))[0] for text in texts] for length in (None, LIMIT))
    else:
        apart = padded = harness.draw_rows(case)
    if harness.task.additive:
        whole, parts = harness.loss(padded), [harness.loss([row]) for row in apart]
        for name in ("weight", "sum"):
            require_equal_data(float(getattr(whole, name)), sum(float(getattr(part, name)) for part in parts),
                 f"the {name} of the loss padded and not", loss_tolerance(whole.sum))
    require_equal_data(harness.measure(padded), harness.measure(*([row] for row in apart)), "padded and not: metric")
    require_equal_data(harness.predictions(padded), [found for row in apart for found in harness.predictions([row])], "padded and not: prediction")


@contract("task", examples=0.5)
def metrics_do_not_hang_on_batching(case: Case) -> None:
    """Metrics are those of all rows, whatever their order and however they are cut into batches, and each pass starts anew.

    In training: the best checkpoint is chosen by a figure that changes with the batch size.

    Seen: transformers#24839 and vak#595, where the last, smaller batch counted as much as the others.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case, 3, 6)
    order = case.draw("order", st.permutations(rows).map(list))
    where = case.draw("split", st.integers(1, max(1, len(rows) - 1)))
    case.story["order"] = [next(i for i, row in enumerate(rows) if row is moved) for moved in order]
    whole = harness.measure(rows)
    require(bool(whole), "it measures nothing")
    require_equal_data(harness.measure(*(part for part in (order[:where], order[where:]) if part)), whole, "in other batches: metric")
    require_equal_data(harness.measure(rows), whole, "measured a second time: metric")


@contract("task", examples=0.5)
def metrics_match_the_loss(case: Case) -> None:
    """A metric that is made of the loss is what follows from the summed losses of the rows, one by one.

    In training: perplexity and loss tell different stories, and a comparison with another model is wrong.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    metrics = harness.task.metrics(harness.tokenizer)
    require("loss" not in metrics, "it has a metric called 'loss', which is the name of the mean loss that every run measures")
    ratios = {name: metric for name, metric in metrics.items() if isinstance(metric, LossRatio)}
    if not ratios or not harness.task.additive:
        raise Skip("none of its metrics is made of its loss")
    terms = [harness.loss([row]) for row in rows]
    nats, weight = (sum(float(term[i]) for term in terms) for i in (0, 1))
    harness.update(metrics, rows)
    for name, metric in ratios.items():
        require_equal_data(float(metric.nats), nats, f"the nats of {name}")
        if isinstance(metric, Perplexity):
            require_equal_data(float(metric.compute()), math.exp(nats / weight), name)


@contract("task")
def predicts_every_row_in_order(case: Case) -> None:
    """There is a prediction for every row, in the order of the rows, and each is an object of JSON.

    In training: nothing shows; predictions are written beside records that they are not of.
    """
    harness = TaskHarness.drawn(case)
    rows = harness.draw_rows(case)
    found = harness.predictions(rows)
    require(len(found) == len(rows), f"{len(found)} predictions for {len(rows)} rows")
    order = case.draw("order", st.permutations(range(len(rows))))
    require_equal_data(harness.predictions([rows[i] for i in order]), [found[i] for i in order], "in another order: prediction")
    require_equal_data([harness.predictions([row])[0] for row in rows], found, "one by one: prediction")
    for one_found in found:
        require(isinstance(one_found, dict), f"a prediction is {one_found!r:.80}; expected a dict")
        try:
            again = json.loads(json.dumps(one_found, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise Broken(f"a prediction is no JSON: {error}") from None
        require(again == one_found, f"a prediction changes on its way through JSON: {one_found!r:.80} and {again!r:.80}")


@contract("task", examples=0.4)
def answers_know_no_labels(case: Case) -> None:
    """What is said of a record does not hang on its answer: it is the same without one, and with that of another record.

    In training: the task is solved at once, with figures too good to be true, and fails on the first unlabelled text.
    """
    harness = TaskHarness.drawn(case)
    task = harness.task
    record, other = harness.draw_record(case), harness.draw_record(case, "other")
    asked = task.question((task.Input or task.Record).model_validate(json.loads(record.model_dump_json())), harness.tokenizer)
    asked = asked if task.packs else task.cut(asked, LIMIT)
    told = harness.answers(harness.rows([asked]))
    for known, what in ((record, "with its answer"), (_with_answer_of(task, record, other), "with another answer")):
        if known is None:
            continue
        example = task.examples(known, harness.tokenizer, None if task.packs else LIMIT)[0]
        if task.Input is None and asked.source is not None:  # the rest of a text, to be written from what there is of it
            example = replace(example, source=asked.source)
        if asked.source is not None and example.source is not None:
            require_equal_data(list(map(int, example.source)), list(map(int, asked.source)), f"{what} and without: token of the source")
        require_equal_data(harness.answers(harness.rows([example])), told, f"{what} and without: answer")


def _with_answer_of(task: Task, record: BaseModel, other: BaseModel) -> BaseModel | None:
    """The record with what is to be predicted of another; None where that does not fit, or nothing is said apart."""
    if task.Input is None:
        return None
    answer = other.model_dump(mode="json", exclude=set(task.Input.model_fields))
    try:
        return task.Record.model_validate({**record.model_dump(mode="json"), **answer})
    except ValidationError:
        return None


@contract("task", examples=0)  # one example: the whole of the records
def baselines_speak_in_its_metrics(case: Case) -> None:
    """What trivial predictors reach is told in the task's own metrics and in numbers.

    In training: a baseline stands beside the result and cannot be compared with it.
    """
    harness = TaskHarness.drawn(case)
    known = {"loss", *harness.task.metrics(harness.tokenizer)}
    baselines = harness.task.baselines(harness.split, harness.split, harness.tokenizer)
    for name, values in baselines.items():
        strange = sorted(values.keys() - known)
        require(bool(values) and not strange, f"baseline {name!r} tells {', '.join(strange) or 'nothing'}; "
                                              f"there are {', '.join(sorted(known))}")
        require(all(math.isfinite(value) for value in values.values()), f"baseline {name!r} tells {values}")
    json.dumps(baselines)


@contract("task", examples=0.1, skip=_looks_ahead)
def labels_are_shifted_once(case: Case) -> None:
    """Of hidden states that say the same token, the next one and the one after that, those that say the next have the lowest
    loss.

    In training: the model learns to say the token after the next, or the one that it sees, with a loss that falls nicely.

    Seen: transformers#46898 and #47394, where labels were shifted twice.
    """
    harness = TaskHarness.drawn(case)
    size = harness.tokenizer.vocab_size
    if harness.task.input_dim is not None or harness.task.n_outputs(size) != size:
        raise Skip("it does not say tokens")
    batch = harness.task.collate(harness.rows(harness.split.examples[:12]))
    inputs, documents = batch.inputs, batch.layout.documents
    losses = []
    for shift in range(3):
        ahead = inputs.roll(-shift, dims=1)
        known = (documents.roll(-shift, dims=1) == documents) & (torch.arange(inputs.shape[1]) < inputs.shape[1] - shift)
        hidden = 20.0 * torch.nn.functional.one_hot(ahead, size).double() * known[:, :, None]
        losses.append(float(harness.task.loss(hidden, _TokenScores(size, size), batch).sum))
    case.story["losses of saying the token itself, the next, the one after it"] = [round(loss, 1) for loss in losses]
    require(losses[1] < 0.8 * min(losses[0], losses[2]), "saying the next token is not what has the lowest loss")


class _TokenScores(Head):
    """Hidden states are the scores of tokens."""

    def forward(self, x: Tensor, select: Tensor | None = None) -> Tensor:
        return x if select is None else x[select]


@contract("task", examples=0.2)
def a_few_steps_lower_the_loss(case: Case) -> None:
    """With the options that it has unless told otherwise, a few steps of an optimizer on a few rows lower their loss.

    In training: the loss hangs on nothing that can be learnt, or its sign is wrong.
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
