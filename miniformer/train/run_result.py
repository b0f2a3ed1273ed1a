"""What a run reached, and how it is written down."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniformer.data.prepare import PreparedData
from miniformer.kernel.task import Split
from miniformer.tasks.metrics import finite

from .module import MiniFormerLitModule


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run reached.

    Attributes:
        folder: the run folder.
        metrics: what the best model reached on the held-out records (`val_`) and the test file (`test_`), and its `step`.
        baselines: what trivial predictors reach on the held-out records.
        module: the best model, in eval mode.
        data: what it was trained on.
        test_baselines: what trivial predictors reach on the test file; empty without one.
    """

    folder: Path
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    module: MiniFormerLitModule
    data: PreparedData
    test_baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """The figures as JSON data, with null for what is no finite number."""
        figures: dict[str, Any] = {"best": finite(self.metrics), "baselines": _finite(self.baselines)}
        return figures if self.data.test is None else {**figures, "test_baselines": _finite(self.test_baselines)}


def _finite(reached: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {predictor: finite(values) for predictor, values in reached.items()}


def baselines_of(data: PreparedData, split: Split) -> dict[str, dict[str, float]]:
    """What trivial predictors reach on a split. A run that is trained does not fail for want of a comparison."""
    try:
        return dict(data.task.baselines(data.train, split, data.tokenizer))
    except Exception as error:
        warnings.warn(f"the baselines could not be measured: {type(error).__name__}: {error}", stacklevel=2)
        return {}
