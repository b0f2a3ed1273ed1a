"""The kit's definitions of metrics agree with torchmetrics, which it does not use for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import (
    accuracy,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision,
    r2_score,
    recall,
)
from torchmetrics.functional.classification import multilabel_exact_match, multilabel_f1_score

from miniformer.contracts.kit.definitions import acceptable

LABELS = ["tool", "fruit", "tree"]
OF_LABELS = {"f1": f1_score, "precision": precision, "recall": recall}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_metrics_of_labels(pairs):
    said, right = ([LABELS[label] for label in side] for side in zip(*pairs, strict=True))
    tensors = [torch.tensor(side) for side in zip(*pairs, strict=True)]
    settings = {"task": "multiclass", "num_classes": 3}
    assert acceptable("accuracy", said, right, 3) == [pytest.approx(float(accuracy(*tensors, **settings, average="micro")))]
    for name, measure in OF_LABELS.items():
        for average in ("micro", "macro", "weighted"):
            expected = pytest.approx(float(measure(*tensors, **settings, average=average)))
            assert expected in acceptable(f"{name}_{average}", said, right, 3)
            assert expected in acceptable(name, said, right, 3)


@given(st.lists(st.tuples(*[st.sets(st.integers(0, 2))] * 2), min_size=1, max_size=8))
def test_metrics_of_sets_of_labels(pairs):
    said, right = ([[LABELS[label] for label in answer] for answer in side] for side in zip(*pairs, strict=True))
    tensors = [torch.tensor([[int(label in answer) for label in range(3)] for answer in side])
               for side in zip(*pairs, strict=True)]
    assert pytest.approx(float(multilabel_exact_match(*tensors, 3))) in acceptable("subset_accuracy", said, right, 3)
    for average in ("micro", "macro"):
        expected = pytest.approx(float(multilabel_f1_score(*tensors, 3, average=average)))
        assert expected in acceptable(f"f1_{average}", said, right, 3)


@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=2, max_size=8))
def test_metrics_of_numbers(pairs):
    said, right = (list(map(float, side)) for side in zip(*pairs, strict=True))
    tensors = [torch.tensor(side, dtype=torch.float64) for side in (said, right)]
    assert acceptable("mse", said, right, 0) == [pytest.approx(float(mean_squared_error(*tensors)))]
    assert acceptable("rmse", said, right, 0) == [pytest.approx(float(mean_squared_error(*tensors, squared=False)))]
    assert acceptable("mae", said, right, 0) == [pytest.approx(float(mean_absolute_error(*tensors)))]
    if len(set(right)) > 1:
        assert acceptable("r2", said, right, 0) == [pytest.approx(float(r2_score(*tensors)))]


def test_words_that_were_cut_off_do_not_count():
    assert 0.5 in acceptable("accuracy", [["a", "b", None]], [["a", "a", "a"]], 2)


@pytest.mark.parametrize(("name", "said", "right"), [
    ("surprise", ["a"], ["a"]), ("accuracy", [0.5], ["a"]), ("accuracy", [{"a": 1.0}], ["a"]), ("accuracy", [1.0], [2.0])])
def test_of_other_names_and_answers_nothing_is_known(name, said, right):
    assert acceptable(name, said, right, 2) is None
