"""What every registered task keeps, the built-in ones and those of whatever else is installed."""

import json
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
from task_models import loss_of, measured, model_for, predictions_of

from miniformer.data.packing import PackedRows
from miniformer.data.prepare import prepare
from miniformer.kernel import Task, build, current_registry, resolve

NAMES = [entry.name for entry in current_registry().entries("task")]
ROWS = 6


@cache
def embedded(name):
    """Some of the embedded records, from all over the library."""
    return list(islice(build(Task, name).stdlib(), 0, None, 37))


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory):
    """A task that has learnt from its embedded records, rows for it, and a model."""
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    records = [record for _, record in embedded(request.param)]
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")
    data = prepare(resolve("task", request.param), str(path), str(path), vocab_size=300, max_len=64)
    examples = data.train.examples
    rows = PackedRows([data.task.cut(e, 50) for e in examples[:ROWS]], 64) if data.task.packs else examples[:ROWS]
    return data.task, data, [rows[i] for i in range(len(rows))], model_for(data.task, data.tokenizer.vocab_size)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_data_are_records_that_a_file_could_hold(name):
    task = build(Task, name)
    assert len(embedded(name)) >= 8
    for where, record in embedded(name):
        assert where.partition(":")[0].endswith(".py")
        assert task.Record.model_validate(json.loads(record.model_dump_json())) == record


@pytest.mark.parametrize("name", NAMES)
def test_an_input_is_a_record_without_what_is_to_be_predicted(name):
    task = build(Task, name)
    if task.Input is not None:
        assert issubclass(task.Record, task.Input)
        assert task.Input.model_fields.keys() < task.Record.model_fields.keys()


def test_losses_of_parts_of_a_batch_add_up(case):
    task, _, rows, model = case
    whole = loss_of(model, task, task.collate(rows))
    parts = [loss_of(model, task, task.collate(rows[i:j])) for i, j in [(0, 1), (1, 3), (3, len(rows))]]
    assert sum(int(part.weight) for part in parts) == int(whole.weight) > 0
    apart = float(sum(part.sum for part in parts) - whole.sum)
    assert (abs(apart) < 1e-9) == task.additive, "a task whose losses do not add up says so"


def test_a_row_is_predicted_alike_alone_and_padded_beside_others(case):
    task, _, rows, model = case
    together = predictions_of(model, task, task.collate(rows))
    alone = [predictions_of(model, task, task.collate([row]))[0] for row in rows]
    assert flat(together) == pytest.approx(flat(alone), abs=2e-6)


def test_there_is_a_prediction_for_every_row_in_order_and_it_is_json(case):
    task, _, rows, model = case
    predictions = predictions_of(model, task, task.collate(rows))
    assert flat(predictions_of(model, task, task.collate(rows[::-1]))) == pytest.approx(flat(predictions[::-1]), abs=2e-6)
    assert all(isinstance(one, dict) for one in predictions)
    assert json.loads(json.dumps(predictions, allow_nan=False)) == predictions


def test_what_is_asked_for_is_predicted_as_what_is_known(case):
    """Labels have no say in a prediction."""
    task, data, _, model = case
    model_of_input = task.Input or task.Record
    for record, example in zip(data.train.records[:3], data.train.examples):
        asked = task.question(model_of_input.model_validate(json.loads(record.model_dump_json())), data.tokenizer)
        asked = asked if task.packs else task.cut(asked, 64)
        if asked.source is not None:  # what is known of a text may be what its rest is to be predicted from
            example = replace(example, source=asked.source)
        pair = [PackedRows([one], 64)[0] if task.packs else one for one in (asked, example)]
        one, other = (task.answer(model, task.collate([row]), data.tokenizer)[0] for row in pair)
        assert flat([one]) == pytest.approx(flat([other]), abs=2e-6)


def test_metrics_do_not_hang_on_how_records_are_batched(case):
    task, data, rows, model = case
    whole = measured(model, task, data.tokenizer, [task.collate(rows)])
    parts = measured(model, task, data.tokenizer, [task.collate(rows[i:j]) for i, j in [(3, len(rows)), (0, 1), (1, 3)]])
    assert parts == pytest.approx(whole, rel=1e-6)
    assert whole


def test_baselines_are_told_in_the_metrics_of_the_task(case):
    task, data, rows, model = case
    known = {"loss", *measured(model, task, data.tokenizer, [task.collate(rows)])}
    baselines = task.baselines(data.train, data.val, data.tokenizer)
    assert baselines
    assert all(values.keys() <= known and values for values in baselines.values())
    json.dumps(baselines, allow_nan=False)


def test_what_a_task_learnt_makes_it_again(case):
    task, data, rows, model = case
    again = build(Task, json.loads(json.dumps(data.task_spec.model_dump(mode="json"))))
    assert torch.equal(loss_of(model, again, again.collate(rows)).sum, loss_of(model, task, task.collate(rows)).sum)


def test_a_batch_is_the_same_each_time(case):
    task, _, rows, _ = case
    torch.manual_seed(1)
    one = task.collate(rows)
    torch.manual_seed(2)
    other = task.collate(rows)
    assert torch.equal(one.inputs, other.inputs)
    assert all(torch.equal(one.targets[name], other.targets[name]) for name in one.targets)


def flat(value):
    """Numbers and words of predictions in order, so that numbers can be compared closely."""
    if isinstance(value, dict):
        return [item for one in value.values() for item in flat(one)]
    if isinstance(value, list):
        return [item for one in value for item in flat(one)]
    return [value if isinstance(value, (int, float)) and not isinstance(value, bool) else sum(map(ord, str(value)))]
