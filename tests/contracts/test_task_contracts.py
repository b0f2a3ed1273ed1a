"""The contracts of tasks: which data they are checked on, what is told, and that healthy tasks break none.

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
from miniformer.contracts.kit.task_harness import CUT, LIMIT, RECORDS, TaskHarness, near, records_of
from miniformer.kernel.task import Task

from .mutants import task as tasks

HEALTHY = [tasks.Sorting, tasks.Texts, tasks.Gaps, tasks.Naming, tasks.Tagging, tasks.Counting, tasks.Matching]


class InFloat32(tasks.Sorting):
    """A task that computes its loss in float32 whatever the model computes in."""

    def loss(self, hidden, head, batch):
        term = super().loss(hidden, head, batch)
        return term._replace(sum=term.sum.float())


class TextsInFloat32(tasks.Texts):
    """The same of a task that packs."""

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
    (tasks.Sorting, {"metrics-match-the-loss", "packing-changes-nothing", "the-source-is-read", "labels-are-shifted-once"}),
    (tasks.Texts, {"the-source-is-read"}),
    (tasks.Gaps, {"the-source-is-read", "labels-are-shifted-once"}),
    (tasks.Naming, {"packing-changes-nothing"}),
])
def test_what_does_not_concern_a_task_is_skipped_and_nothing_else(cls, skipped):
    report = check_component("task", cls, examples=2)
    assert {result.property for result in report.results if result.outcome is Outcome.SKIPPED} == skipped


def test_a_task_without_data_is_told_what_helps():
    report = check_component("task", NoData, examples=2)
    assert "data=, or --data" in report["losses-add-up"].why
    assert report["declared-abilities-are-checked"].outcome is Outcome.FAILED, "nothing proves that its losses add up"


@pytest.mark.parametrize("record", [
    lambda n: {"input": f"{n} {'words ' * (n % 5)}", "label": n % 3},
    lambda n: {"input": [[n + t, t % 2] for t in range(2 + n % 5)], "label": ("even", "odd")[n % 2]},
], ids=["texts", "series"])
def test_a_file_of_records_is_checked_on(tmp_path, record):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record(n)) + "\n" for n in range(60)), encoding="utf-8")
    report = check_component("task", NoData, data=str(path), examples=depth.examples(30))
    assert report.ok, report.explain()
    assert report["answers-know-no-labels"].examples > 0


def test_a_file_that_is_none_of_records_is_told_with_its_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"input": "a", "label": 1}\n{"input": "b"}\n', encoding="utf-8")
    assert f"{path}:2" in check_component("task", NoData, data=str(path), examples=1)["losses-add-up"].why


def test_few_and_short_records_are_used_from_all_over(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"input": f"{n}" * (1 + n % 7), "label": n}) + "\n" for n in range(5000)))
    records = records_of(NoData, str(path))
    labels = [record.label for record in records]
    assert len(records) == RECORDS
    assert labels == sorted(labels)
    assert labels[0] < 500 and labels[-1] > 2000
    assert max(len(record.input) for record in records) <= 12


def test_a_given_option_is_kept_and_others_are_drawn():
    subject = ComponentUnderTest("task", "matching", tasks.Matching, {"size": 8})
    seen = set()

    @settings(max_examples=depth.examples(20))
    @given(st.data())
    def examples(data):
        one = TaskHarness.drawn(Case(subject, data))
        seen.add((one.task.size, one.task.temperature))

    examples()
    assert {size for size, _ in seen} == {8}
    assert len(seen) > 1


def test_rows_fit_the_model():
    assert 2 * CUT > LIMIT > CUT, "some texts go on in the next row"


@pytest.mark.parametrize(("found", "expected"), [
    (1.0, 1.0 + 1e-8), (float("nan"), float("nan")), ({"a": [1, 2.0]}, {"a": [1, 2.0]}), ("x", "x"), ([], [])])
def test_like_values_are_near(found, expected):
    near(found, expected, "value")


@pytest.mark.parametrize(("found", "expected", "told"), [
    (1.0, 1.1, "value: 1 and 1.1, 1.0e-01 apart"), (float("nan"), 1.0, "value: nan and 1"),
    ({"a": [1.0, 2.0]}, {"a": [1.0, 3.0]}, "value a 1: 2 and 3"), ("x", "y", "value: 'x' and 'y'"),
    ([1.0], [1.0, 2.0], "value: "), ({"a": 1}, {"b": 1}, "value: ")])
def test_unlike_values_are_told(found, expected, told):
    with pytest.raises(AssertionError, match=told):
        near(found, expected, "value")
