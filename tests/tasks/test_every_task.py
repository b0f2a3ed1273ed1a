"""What the built-in tasks have beyond the contracts of tasks, which tests/contracts checks: records, and predictors to beat."""

import json
from itertools import islice

import pytest

from miniformer.kernel import Task, build, current_registry

NAMES = [entry.name for entry in current_registry().entries("task") if entry.distribution == "miniformer"]


@pytest.mark.usefixtures("few_sources")
@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_data_are_records_that_a_file_could_hold(name):
    task = build(Task, name)
    records = list(islice(task.stdlib(), 0, 50, 5))
    assert len(records) >= 8
    for where, record in records:
        assert where.partition(":")[0].endswith(".py")
        assert task.Record.model_validate(json.loads(record.model_dump_json())) == record


@pytest.mark.parametrize("name", NAMES)
def test_an_input_is_a_record_without_what_is_to_be_predicted(name):
    task = build(Task, name)
    assert task.Input is None or issubclass(task.Record, task.Input)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_trivial_predictor_to_beat(name):
    assert type(build(Task, name)).baselines is not Task.baselines
