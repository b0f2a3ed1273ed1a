"""Labels as people write them, whole numbers or strings, and their places among a head's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import StrictInt, StrictStr
from torch import Tensor

from miniformer.kernel.errors import did_you_mean

Label = StrictInt | StrictStr


class LabelIndex(dict[Label, int]):
    """The place of each label; one that is not there is an error that names the nearest.

    Raises:
        ValueError: a label occurs twice, or two are written alike, since predictions are keyed by what is written.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        super().__init__((label, i) for i, label in enumerate(labels))
        if len(self) < len(labels):
            raise ValueError(f"labels: {Counter(labels).most_common(1)[0][0]!r} occurs twice")
        for label in labels:
            if isinstance(label, int) and str(label) in self:
                raise ValueError(f"labels: {label!r} and {str(label)!r} are written alike")

    def __missing__(self, label: Label) -> int:
        near = did_you_mean(str(label), map(str, self))
        raise ValueError(f"label {label!r} is not one of the {len(self)} in the training data{near}")


def learn_labels(found: Iterable[Label]) -> list[Label]:
    """The different labels in order, numbers first.

    Raises:
        ValueError: there are fewer than two, or some that cannot be told apart.
    """
    labels = sorted(set(found), key=lambda label: (isinstance(label, str), label))
    if len(labels) < 2:
        what = f"every record has the label {labels[0]!r}" if labels else "no record has a label"
        raise ValueError(f"{what}; expected at least two different labels")
    LabelIndex(labels)
    return labels


def rounded(labels: Sequence[Label], probabilities: Tensor) -> dict[str, float]:
    """Probabilities `[C]` by label, to six places."""
    return {str(label): round(p, 6) for label, p in zip(labels, probabilities.tolist(), strict=True)}
