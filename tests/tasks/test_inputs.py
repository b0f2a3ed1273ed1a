"""Texts and series as inputs: what is accepted, how features are scaled, and what is told of the rest."""

import pytest
import torch

from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.tasks.inputs import SequenceInput, encode_input, learn_features

TOKENIZER = Tokenizer.train(["some words"], 261)


def series(value):
    return SequenceInput(input=value)


@pytest.mark.parametrize("value", ["a text", "", [1, 2.5], [[1, 2], [3, 4]], [0]])
def test_a_text_or_a_series_is_an_input(value):
    assert SequenceInput.model_validate_json(series(value).model_dump_json()).input == value


@pytest.mark.parametrize("value", [None, 3, [], {"a": 1}])
def test_anything_else_is_refused_with_what_would_be_right(value):
    with pytest.raises(ValueError, match="expected a text, a list of numbers, or a list of lists of numbers"):
        series(value)


@pytest.mark.parametrize(("value", "told"), [
    ([1, None], "element 2 should be a finite number; found null"), (["a"], 'element 1 should be a finite number; found "a"'),
    ([True], "element 1 should be a finite number; found true"), ([1, float("inf")], "element 2 .*; found Infinity"),
    ([float("nan")], "element 1 .*; found NaN"), ([10**400], "element 1 should be a finite number; found 10000"),
    ([10**5000], "element 1 should be a finite number; found int that JSON cannot hold"),
    ([1, [2]], r"element 2 should be a number like the first; found \[2\]"),
    ([[1], 2], "element 2 should be a list of numbers like the first; found 2"),
    ([[]], r"element 1 should be a list of numbers; found \[\]"),
    ([[1], []], r"element 2 should be a list of numbers like the first; found \[\]"),
    ([[1, 2], [3, None]], "element 2, number 2 should be a finite number; found null")])
def test_the_element_of_a_series_that_is_wrong_is_named(value, told):
    with pytest.raises(ValueError, match=told):
        series(value)


def test_features_are_scaled_by_what_the_training_records_have():
    records = [series([[0, 5], [4, 5]]), series([[2, 5]])]
    (mean, std), constant = learn_features(records)["features"]
    assert (mean, std) == pytest.approx((2, (8 / 3) ** 0.5))
    assert constant == (5.0, 1.0), "what never varies is not divided by 0"
    found = encode_input(records[0], NoTokenizer(), ((mean, std), constant))
    torch.testing.assert_close(found, torch.tensor([[-2 / std, 0], [2 / std, 0]]))


@pytest.mark.parametrize("column", [[0.1] * 10, [0.3, 0.1 + 0.2] * 5, [1e9 / 3] * 7, [-1e-5] * 30])
def test_a_feature_that_varies_by_rounding_alone_is_constant(column):
    [(mean, std)] = learn_features([series([[x] for x in column])])["features"]
    assert (mean, std) == (pytest.approx(column[0]), 1.0)


@pytest.mark.parametrize("column", [[1e9, 1e9 + 0.01], [0.0, 1e-12], [1e-9, 2e-9]])
def test_a_feature_that_varies_little_still_varies(column):
    [(_, std)] = learn_features([series([[x] for x in column])])["features"]
    assert std == pytest.approx((column[1] - column[0]) / 2, rel=1e-5)


def test_plain_numbers_are_vectors_of_one():
    assert encode_input(series([1, 2, 3]), NoTokenizer(), ((1.0, 2.0),)).tolist() == [[0.0], [0.5], [1.0]]


def test_large_numbers_keep_their_differences():
    found = encode_input(series([1e9, 1e9 + 1]), NoTokenizer(), ((1e9, 1.0),))
    assert found.tolist() == [[0.0], [1.0]]


def test_texts_teach_no_features():
    assert learn_features([series("a"), series([1])]) == {}


@pytest.mark.parametrize(("value", "features", "told"), [
    ([[1, 2], [3]], ((0, 1), (0, 1)), "element 2 is 1 number; expected 2 numbers for each, as in the first training record"),
    ([1, 2], ((0, 1), (0, 1)), "element 1 is 1 number; expected 2 numbers"),
    ([[1, 2]], ((0, 1),), "element 1 is 2 numbers; expected 1 number for each"),
    ("a", ((0, 1),), "field 'input': a text; expected 1 number for each"),
    ([1], (), "a list of numbers; expected a text, as in the first training record"),
])
def test_what_is_not_like_the_training_records_is_told(value, features, told):
    with pytest.raises(ValueError, match=told):
        encode_input(series(value), TOKENIZER, features)


def test_numbers_that_have_no_deviation_are_told():
    for values in ([[1, 1e300], [1, 2]], [[1, 1e308], [1, 1.5e308]]):
        with pytest.raises(ValueError, match=r"field 'input': 1(\.5)?e\+30[08] is too large to take a mean and a deviation of"):
            learn_features([series(values)])


def test_what_is_too_far_from_the_training_records_is_told():
    with pytest.raises(ValueError, match=r"element 2 has a number too far from those of the training records; found 1e\+300"):
        encode_input(series([[0, 0], [0, -1e300]]), TOKENIZER, ((0, 1), (0, 1)))
