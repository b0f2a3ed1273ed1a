"""Values of Python in records: what is taken for the JSON value that it means, and what is left to be refused."""

from array import array
from collections import deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from miniformer.data.jsonl import validated
from miniformer.data.plain import plain
from miniformer.kernel.errors import DataError
from miniformer.tasks.classification import LabelledRecord
from miniformer.tasks.inputs import SequenceInput
from miniformer.tasks.regression import ValuedRecord


@pytest.mark.parametrize(("value", "meant"), [
    (np.int64(3), 3), (np.float32(0.5), 0.5), (np.longdouble(2), 2.0), (np.bool_(True), True), (np.str_("a"), "a"),
    (torch.tensor(3), 3), (torch.tensor([0.5, 1.0], dtype=torch.bfloat16), [0.5, 1.0]), (np.array([[1, 2]]), [[1, 2]]),
    (np.array("a"), "a"), (array("d", [0.5]), [0.5]), ((1, (2, np.int8(3))), [1, [2, 3]]), (range(2), [0, 1]),
    (deque([1]), [1]), (Decimal("1.5"), 1.5), (Decimal("1E+2"), 100), (Fraction(1, 2), 0.5), (Path("a/b"), "a/b"),
    ({"a": np.float64(1)}, {"a": 1.0}), (torch.ones(1, requires_grad=True), [1.0]), (None, None), (True, True)])
def test_a_value_that_means_a_json_value_is_that_value(value, meant):
    found = plain(value)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize("value", [b"a", {1}, object(), Decimal("NaN"), 1j])
def test_a_value_that_means_none_is_left_as_it_is(value):
    assert plain(value) is value


@pytest.mark.parametrize(("schema", "record"), [
    (SequenceInput, {"input": np.array([1.0, 2.0])}), (SequenceInput, {"input": (np.float32(1), torch.tensor(2))}),
    (LabelledRecord, {"input": "a", "label": np.int64(2)}), (ValuedRecord, {"input": "a", "value": np.float32(0.5)})])
def test_a_record_may_hold_such_values(schema, record):
    assert validated("record 1", plain(record), schema).model_dump_json()


@pytest.mark.parametrize(("schema", "record", "told"), [
    (LabelledRecord, {"input": "a", "label": np.float64(2)}, "field 'label': input should be a valid integer .*; found 2.0"),
    (LabelledRecord, {"input": "a", "label": np.bool_(True)}, "field 'label': input should be a valid integer .*; found true"),
    (ValuedRecord, {"input": "a", "value": np.float32("nan")}, "field 'value': input should be a finite number; found NaN"),
    (SequenceInput, {"input": np.array(["a"])}, "field 'input': element 1 should be a finite number; found \"a\"")])
def test_a_value_of_another_kind_than_its_field_is_refused_as_in_a_file(schema, record, told):
    with pytest.raises(DataError, match=f"^record 1: {told}"):
        validated("record 1", plain(record), schema)
