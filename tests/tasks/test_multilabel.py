"""Multilabel: loss, metrics, baselines and predictions against direct computation."""

import math
from itertools import islice

import pytest
import torch
from task_models import loss_of, measured, model_for, outputs_of, predictions_of

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.task import Split
from miniformer.tasks.multilabel import Multilabel, MultilabelRecord

LABELS = (1, "hot", "wet")
TASK = Multilabel(labels=LABELS)
TOKENIZER = Tokenizer.train(["some words"], 261)
RECORDS = [MultilabelRecord(input="x" * n + "y", labels=[label for i, label in enumerate(LABELS) if n >> i & 1])
           for n in (0, 5, 7, 2, 3, 6, 1, 4)]
EXAMPLES = [TASK.encode(record, TOKENIZER) for record in RECORDS]
MODEL = model_for(TASK, 261)
BATCH = TASK.collate(EXAMPLES)


def chances():
    """The probability of each label of each record, each run alone."""
    return torch.stack([1 / (1 + torch.exp(-outputs_of(MODEL, example.tokens))) for example in EXAMPLES])


def decisions():
    """Said and right, for each record and label."""
    return [[(p > 0.5, label in record.labels) for p, label in zip(row, LABELS)]
            for row, record in zip(chances().tolist(), RECORDS)]


def f1(pairs):
    hits, total = sum(a and b for a, b in pairs), sum(a + b for a, b in pairs)
    return 2 * hits / total if total else 0.0


def test_labels_are_learnt_in_order_from_all_records():
    found = Multilabel().fit([MultilabelRecord(input="x", labels=labels) for labels in (["b", 2], [], ["a"])])
    assert found == {"labels": [2, "a", "b"]}


@pytest.mark.parametrize(("labels", "told"), [(["a"], "every record has the label 'a'"), ([], "no record has a label")])
def test_fewer_than_two_labels_are_refused(labels, told):
    with pytest.raises(ValueError, match=told):
        Multilabel().fit([MultilabelRecord(input="x", labels=labels)] * 2)


def test_records_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match="every record has the labels 'a', 'b'; expected records that differ in their labels"):
        Multilabel().fit([MultilabelRecord(input="x", labels=labels) for labels in (["a", "b"], ["b", "a"])])


def test_a_single_label_is_enough_where_not_every_record_has_it():
    records = [MultilabelRecord(input="x" * n, labels=["spam"] * (n % 2)) for n in range(1, 9)]
    task = Multilabel(labels=tuple(Multilabel().fit(records)["labels"]))
    assert task.labels == ("spam",)
    model, examples = model_for(task, 261), [task.encode(record, TOKENIZER) for record in records]
    batch = task.collate(examples)
    predictions = predictions_of(model, task, batch)
    pairs = [(row["probabilities"]["spam"] > 0.5, record.labels == ["spam"]) for row, record in zip(predictions, records)]
    assert [row["labels"] for row in predictions] == [["spam"] if said else [] for said, _ in pairs]
    found = measured(model, task, TOKENIZER, [batch])
    assert found["f1_micro"] == pytest.approx(f1(pairs)) == found["f1_macro"]
    assert found["subset_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert task.baselines(Split(records, examples), Split(records, examples), TOKENIZER)["all labels"] == pytest.approx(
        {"f1_micro": 2 / 3, "f1_macro": 2 / 3, "subset_accuracy": 0.5})


def test_a_label_may_not_occur_twice_in_a_record():
    with pytest.raises(ValueError, match="label 'a' occurs twice"):
        MultilabelRecord(input="x", labels=["a", "b", "a"])


def test_an_unknown_label_is_told():
    with pytest.raises(ValueError, match=r"label 'hott' is not one of the 3.*did you mean 'hot'"):
        TASK.encode(MultilabelRecord(input="x", labels=["hott"]), TOKENIZER)


def test_the_loss_is_the_binary_cross_entropy_of_every_answer():
    term = loss_of(MODEL, TASK, BATCH)
    expected = -sum(math.log(p if label in record.labels else 1 - p)
                    for row, record in zip(chances().tolist(), RECORDS) for p, label in zip(row, LABELS))
    assert float(term.sum) == pytest.approx(expected, abs=1e-9)
    assert int(term.weight) == len(RECORDS) * len(LABELS)


def test_metrics_are_those_of_all_decisions():
    rows = decisions()
    found = measured(MODEL, TASK, TOKENIZER, [BATCH])
    assert found["f1_micro"] == pytest.approx(f1([pair for row in rows for pair in row]))
    assert found["f1_macro"] == pytest.approx(sum(f1([row[i] for row in rows]) for i in range(3)) / 3)
    assert found["subset_accuracy"] == pytest.approx(sum(all(a == b for a, b in row) for row in rows) / len(rows))


def test_a_prediction_is_the_likelier_labels_and_all_probabilities():
    for found, row in zip(predictions_of(MODEL, TASK, BATCH), chances().tolist(), strict=True):
        assert found["labels"] == [label for p, label in zip(row, LABELS) if p > 0.5]
        assert found["probabilities"] == pytest.approx(dict(zip(map(str, LABELS), row)), abs=1e-6)


def test_baselines_give_every_record_the_same_labels():
    def split(*labels):
        records = [MultilabelRecord(input="x", labels=one) for one in labels]
        return Split(records, [TASK.encode(record, TOKENIZER) for record in records])

    held_out = split(["hot"], ["hot", "wet"], [1, "hot", "wet"])
    found = TASK.baselines(split(["hot"], ["hot", "wet"], []), held_out, TOKENIZER)
    assert found["the commonest labels"] == pytest.approx({"f1_micro": 2 * 3 / (3 + 6), "f1_macro": 1 / 3,
                                                           "subset_accuracy": 1 / 3})
    assert found["all labels"]["f1_micro"] == pytest.approx(2 * 6 / (9 + 6))
    assert found["all labels"]["subset_accuracy"] == pytest.approx(1 / 3)


def test_the_embedded_labels_are_what_the_functions_hold():
    records = {record.input: record.labels for _, record in islice(Multilabel().stdlib(), 2000)}
    some = next(labels for source, labels in records.items() if "yield" in source and "for " in source)
    assert {"loop", "yield"} <= set(some) or "comprehension" in some
    assert all("lambda" in source for source, labels in records.items() if "lambda" in labels)
