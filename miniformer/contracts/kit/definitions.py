"""What a metric of a well-known name is by definition, computed in plain Python from predictions and right answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Answers = Sequence[Any]
"""One answer for each record: a label, a number, a label for each word, or a collection of labels."""


def acceptable(name: str, said: Answers, right: Answers, n_labels: int, beside_accuracy: bool = False) -> list[float] | None:
    """The values that the metric `name` may have for these answers; None if the name says nothing about these answers.

    There may be several: names such as `f1` leave open how labels are averaged.

    Args:
        name: the metric's name.
        said: the predictions.
        right: the right answers.
        n_labels: how many labels there are.
        beside_accuracy: whether there is a metric `accuracy` too. Of labels that exclude each other, that is also F1 over all
            answers together, so a metric `f1` beside it is meant to be something else.
    """
    if any(not _alike(one, other) for one, other in zip(said, right, strict=True)):
        return None
    if all(isinstance(answer, float) for answer in right):
        definition = NUMBERS.get(name)
        return definition and [definition(list(map(float, said)), list(map(float, right)))]
    if not all(isinstance(answer, list) for answer in right):
        return _of_labels(name, said, right, n_labels, beside_accuracy)
    values = _of_sets(name, said, right, n_labels) or []
    if all(len(one) == len(other) for one, other in zip(said, right, strict=True)):
        pairs = [pair for one, other in zip(said, right, strict=True) for pair in zip(one, other, strict=True)
                 if pair[0] is not None]  # of a word that was cut off nothing is said
        if pairs:
            values += _of_labels(name, [one for one, _ in pairs], [other for _, other in pairs], n_labels,
                                 beside_accuracy) or []
    return values or None


def _alike(said: Any, right: Any) -> bool:
    """Whether an answer is of the kind of the right one: a number, a list, or a label."""
    kinds = next((kinds for kinds in ((int, float), list) if isinstance(right, kinds)), str)
    return isinstance(said, kinds)


def _mse(said: Sequence[float], right: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(said, right, strict=True)) / len(right)


def _r2(said: Sequence[float], right: Sequence[float]) -> float:
    mean = sum(right) / len(right)
    spread = sum((b - mean) ** 2 for b in right)
    return 1 - _mse(said, right) * len(right) / spread if spread > 1e-9 * sum(b * b for b in right) else 0.0


NUMBERS: Mapping[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "mse": _mse, "rmse": lambda said, right: math.sqrt(_mse(said, right)), "r2": _r2,
    "mae": lambda said, right: sum(abs(a - b) for a, b in zip(said, right, strict=True)) / len(right)}
"""Metrics of numbers."""


def _of_labels(name: str, said: Sequence[Hashable], right: Sequence[Hashable], n_labels: int,
               beside_accuracy: bool) -> list[float] | None:
    """The values of a metric of labels that exclude each other."""
    share = sum(a == b for a, b in zip(said, right, strict=True)) / len(right)
    shares = {"accuracy": share, "exact_match": share, "f1_micro": share, "error_rate": 1 - share}
    if name in shares:
        return [shares[name]]
    values = _averages(name, [(Counter([a]), Counter([b])) for a, b in zip(said, right, strict=True)], n_labels)
    if values and beside_accuracy and "_" not in name:
        return values[1:]  # the first is the score of all answers together; another may be the same by chance
    return values


def _of_sets(name: str, said: Answers, right: Answers, n_labels: int) -> list[float] | None:
    """The values of a metric of answers that may have any number of labels."""
    same = sum(set(a) == set(b) for a, b in zip(said, right, strict=True)) / len(right)
    wrong = sum(len(set(a) ^ set(b)) for a, b in zip(said, right, strict=True)) / (len(right) * max(1, n_labels))
    if name in ("subset_accuracy", "exact_match"):
        return [same]
    if name == "accuracy":
        return [same, 1 - wrong]
    return _averages(name, [(Counter(set(a)), Counter(set(b))) for a, b in zip(said, right, strict=True)], n_labels)


def _averages(name: str, pairs: Sequence[tuple[Counter[Any], Counter[Any]]], n_labels: int) -> list[float] | None:
    """The values that F1, precision or recall may have; without an average in the name, each usual average is one."""
    measure, _, average = name.partition("_")
    if measure not in ("f1", "precision", "recall") or average not in ("", "micro", "macro", "weighted"):
        return None
    hits, said, right = Counter[Any](), Counter[Any](), Counter[Any]()
    for one, other in pairs:
        hits, said, right = hits + (one & other), said + one, right + other

    def score(labels: Iterable[Any]) -> float:
        labels = list(labels)
        hit, claimed, due = (sum(counts[label] for label in labels) for counts in (hits, said, right))
        whole = {"f1": (claimed + due) / 2, "precision": claimed, "recall": due}[measure]
        return hit / whole if whole else 0.0

    seen = list({*said, *right})
    scores = [score([label]) for label in seen]
    values = {"micro": [score(seen)], "weighted": [sum(right[label] * s for label, s in zip(seen, scores, strict=True))
                                                  / max(1, sum(right.values()))],
              "macro": [sum(scores) / max(1, count) for count in (len(seen), n_labels)], "": scores}
    values[""] = [value for some in values.values() for value in some]
    return values[average]
