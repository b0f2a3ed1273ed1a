"""Regression: targets in units of their deviation, errors and predictions in their own."""

import math

import pytest
from task_models import loss_of, measured, model_for, outputs_of, predictions_of

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.task import Split
from miniformer.tasks.regression import Regression, ValuedRecord

TASK = Regression(mean=1000.0, std=20.0)
TOKENIZER = Tokenizer.train(["some words"], 261)
RECORDS = [ValuedRecord(input="x" * n, value=1000 + n * n - 30) for n in (1, 5, 9, 2, 7, 3)]
EXAMPLES = [TASK.encode(record, TOKENIZER) for record in RECORDS]
MODEL = model_for(TASK, 261)
BATCH = TASK.collate(EXAMPLES)


def said():
    """What the model says of each record, in the value's unit."""
    return [float(outputs_of(MODEL, example.tokens)[0]) * 20 + 1000 for example in EXAMPLES]


def right():
    return [record.value for record in RECORDS]


@pytest.mark.parametrize("name", ["value", "label"])
def test_the_number_is_called_value_or_label(name):
    assert ValuedRecord.model_validate({"input": "x", name: 32}).value == 32.0


def test_both_names_at_once_are_refused():
    with pytest.raises(ValueError, match="'value' and 'label' are two names of the number"):
        ValuedRecord.model_validate({"input": "x", "label": 1, "value": 1})


@pytest.mark.parametrize("value", ["1", True, None, math.inf, math.nan])
def test_a_value_is_a_finite_number(value):
    with pytest.raises(ValueError, match="value"):
        ValuedRecord.model_validate({"input": "x", "value": value})


def test_mean_and_deviation_are_learnt():
    learnt = Regression().fit([ValuedRecord(input="x", value=value) for value in (1, 2, 6)])
    assert learnt == {"mean": 3.0, "std": pytest.approx(math.sqrt(14 / 3))}


def test_a_mean_and_deviation_that_are_given_are_not_learnt():
    assert TASK.fit(RECORDS) == {}
    assert Regression(mean=0.0, std=1.0).fit(RECORDS) == {}, "0 is a mean too"


def test_one_value_only_is_refused():
    with pytest.raises(ValueError, match="every record has the value 3"):
        Regression().fit([ValuedRecord(input="x", value=3)] * 2)


def test_the_loss_is_the_squared_error_in_deviations():
    term = loss_of(MODEL, TASK, BATCH)
    assert float(term.sum) == pytest.approx(sum(((a - b) / 20) ** 2 for a, b in zip(said(), right())), rel=1e-6)
    assert int(term.weight) == len(RECORDS)


def test_metrics_are_in_the_value_s_own_unit():
    found = measured(MODEL, TASK, TOKENIZER, [TASK.collate(EXAMPLES[:2]), TASK.collate(EXAMPLES[2:])])
    errors, mean = [a - b for a, b in zip(said(), right())], sum(right()) / len(RECORDS)
    assert found["mse"] == pytest.approx(sum(e * e for e in errors) / len(errors), rel=1e-6)
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / len(errors), rel=1e-6)
    assert found["r2"] == pytest.approx(1 - sum(e * e for e in errors) / sum((b - mean) ** 2 for b in right()), rel=1e-6)


def test_explained_variance_is_exact_far_from_0():
    """In single precision the squares of such values have no digit left for their differences."""
    task = Regression(mean=1e9, std=0.1)
    records = [ValuedRecord(input="x" * n, value=1e9 + n / 10) for n in (1, 2, 3, 4)]
    batch = task.collate([task.encode(record, TOKENIZER) for record in records])
    errors = [(float(outputs_of(MODEL, row.tokens)[0]) - n) ** 2
              for n, row in zip((1, 2, 3, 4), [task.encode(record, TOKENIZER) for record in records])]
    assert measured(MODEL, task, TOKENIZER, [batch])["r2"] == pytest.approx(1 - sum(errors) / 5, rel=1e-5)


def test_of_one_record_no_variance_is_explained():
    assert measured(MODEL, TASK, TOKENIZER, [TASK.collate(EXAMPLES[:1])])["r2"] == 0


def test_a_prediction_is_the_number_in_its_own_unit():
    assert [row["value"] for row in predictions_of(MODEL, TASK, BATCH)] == pytest.approx(said(), abs=1e-4)


def test_the_baseline_is_the_mean_of_the_training_records():
    def split(*values):
        records = [ValuedRecord(input="x", value=value) for value in values]
        return Split(records, [TASK.encode(record, TOKENIZER) for record in records])

    found = TASK.baselines(split(980, 1000, 1020, 1040), split(1010, 1020), TOKENIZER)
    assert found == {"the mean": pytest.approx({"loss": 50 / 400, "mse": 50, "mae": 5, "r2": 1 - 100 / 50})}


@pytest.mark.usefixtures("few_sources")
def test_the_embedded_numbers_are_counts_of_parameters():
    records = {record.input.partition("\n")[0]: record.value for _, record in Regression().stdlib()}
    assert records["def popitem(self):"] == 1
    assert next(value for line, value in records.items() if line.startswith("def ") and "(self, a, b)" in line) == 3


def test_numbers_that_have_no_deviation_are_told():
    def fit(*values):
        return Regression().fit([ValuedRecord(input="x", value=value) for value in values])

    with pytest.raises(ValueError, match=r"field 'value': 1e\+300 is too large to take a mean and a deviation of"):
        fit(1, 1e300, 2)
    with pytest.raises(ValueError, match=r"field 'value': the numbers are too near to each other .* 1e-300 and 2e-300"):
        fit(1e-300, 2e-300)
    with pytest.raises(ValueError, match=r"too near to each other to tell apart, such as 0\.3 and 0\.30000000000000004"):
        fit(0.3, 0.1 + 0.2, 0.3)


@pytest.mark.parametrize("values", [(1e9, 1e9 + 0.1), (1e-9, 2e-9), (-0.1, 0.1), (0, 1e-12)])
def test_numbers_that_differ_by_more_than_rounding_are_learnt(values):
    learnt = Regression().fit([ValuedRecord(input="x", value=value) for value in values])
    assert learnt["std"] == pytest.approx((values[1] - values[0]) / 2, rel=1e-5)


def test_a_number_too_far_from_the_training_records_is_told():
    with pytest.raises(ValueError, match=r"field 'value': too far from those of the training records; found 1e\+300"):
        TASK.encode(ValuedRecord(input="x", value=1e300), TOKENIZER)
