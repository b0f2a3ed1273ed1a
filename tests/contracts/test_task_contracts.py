"""The contracts of tasks: the data that they are checked on, their messages, and healthy tasks, which break none.

Tasks with a fault, and the property that names it, are in mutants/task.py.
"""

import json

import depth
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.contracts import Outcome, check_component
from miniformer.contracts.kit.case import Case
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.task_harness import CUT, LIMIT, MAX_RECORDS, TaskHarness, records_of, require_equal_data
from miniformer.kernel.task import Task

from .mutants import task as tasks

HEALTHY = [tasks.Sorting, tasks.Texts, tasks.Gaps, tasks.Naming, tasks.Tagging, tasks.Counting, tasks.Matching]


class InFloat32(tasks.Sorting):
    """A task that computes its loss in float32 whatever the model computes in."""

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return term._replace(sum=term.sum.float())


class TextsInFloat32(tasks.Texts):
    """A task that packs texts, and computes its loss in float32 whatever the model computes in."""

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return term._replace(sum=term.sum.float())


class NoData(tasks.Sorting):
    """A task that embeds no records."""

    stdlib = Task.stdlib


@pytest.mark.parametrize("cls", [*HEALTHY, InFloat32, TextsInFloat32], ids=lambda cls: cls.__name__)
def test_a_healthy_task_breaks_no_promise(cls):
    report = check_component("task", cls, examples=depth.examples(30))
    assert report.ok, report.explain()


@pytest.mark.parametrize(("cls", "skipped"), [
    (tasks.Sorting, {"metrics-match-the-loss", "packing-changes-nothing", "the-source-is-read", "labels-are-shifted-once",
                     "rows-without-targets-count-nothing"}),
    (tasks.Texts, {"the-source-is-read", "predicts-what-it-learns"}),
    (tasks.Gaps, {"the-source-is-read", "labels-are-shifted-once", "predicts-what-it-learns"}),
    (tasks.Naming, {"packing-changes-nothing"}),
])
def test_only_properties_that_do_not_concern_a_task_are_skipped(cls, skipped):
    report = check_component("task", cls, examples=2)
    assert {result.property for result in report.results if result.outcome is Outcome.SKIPPED} == skipped


def test_the_report_of_a_task_without_data_says_how_to_give_some():
    report = check_component("task", NoData, examples=2)
    assert "data=, or --data" in report["losses-add-up"].why
    assert report["declared-abilities-are-checked"].outcome is Outcome.FAILED, "nothing proves that its losses add up"


@pytest.mark.parametrize("record", [
    lambda n: {"input": f"{n} {'words ' * (n % 5)}", "label": n % 3},
    lambda n: {"input": [[n + t, t % 2] for t in range(2 + n % 5)], "label": ("even", "odd")[n % 2]},
], ids=["texts", "series"])
def test_a_task_can_be_checked_on_a_file_of_records(tmp_path, record):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record(n)) + "\n" for n in range(60)), encoding="utf-8")
    report = check_component("task", NoData, data=str(path), examples=depth.examples(30))
    assert report.ok, report.explain()
    assert report["answers-know-no-labels"].examples > 0


def test_a_file_with_a_wrong_record_is_reported_with_its_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"input": "a", "label": 1}\n{"input": "b"}\n', encoding="utf-8")
    assert f"{path}:2" in check_component("task", NoData, data=str(path), examples=1)["losses-add-up"].why


def test_a_few_short_records_from_all_parts_of_the_file_are_used(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"input": f"{n}" * (1 + n % 7), "label": n}) + "\n" for n in range(5000)))
    records = records_of(NoData, str(path))
    labels = [record.label for record in records]
    assert len(records) == MAX_RECORDS
    assert labels == sorted(labels)
    assert labels[0] < 500 and labels[-1] > 2000
    assert max(len(record.input) for record in records) <= 12


def test_a_fixed_option_is_kept_and_others_are_drawn():
    under_test = ComponentUnderTest("task", "matching", tasks.Matching, {"size": 8})
    seen = set()

    @settings(max_examples=depth.examples(20))
    @given(st.data())
    def examples(data):
        task = TaskHarness.drawn(Case(under_test, data)).task
        seen.add((task.size, task.temperature))

    examples()
    assert {size for size, _ in seen} == {8}
    assert len(seen) > 1


def test_rows_fit_the_model():
    assert 2 * CUT > LIMIT > CUT, "some texts continue in the next row"


@pytest.mark.parametrize(("actual", "expected"), [
    (1.0, 1.0 + 1e-8), (float("nan"), float("nan")), ({"a": [1, 2.0]}, {"a": [1, 2.0]}), ("x", "x"), ([], [])])
def test_values_that_differ_by_rounding_are_equal(actual, expected):
    require_equal_data(actual, expected, "value")


@pytest.mark.parametrize(("actual", "expected", "message"), [
    (1.0, 1.1, "value: 1 and 1.1, 1.0e-01 apart"), (float("nan"), 1.0, "value: nan and 1"),
    ({"a": [1.0, 2.0]}, {"a": [1.0, 3.0]}, "value a 1: 2 and 3"), ("x", "y", "value: 'x' and 'y'"),
    ([1.0], [1.0, 2.0], "value: "), ({"a": 1}, {"b": 1}, "value: ")])
def test_values_that_differ_are_reported(actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        require_equal_data(actual, expected, "value")
