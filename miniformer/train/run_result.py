"""What a run reached, and how it is written down."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniformer.data.prepare import PreparedData
from miniformer.tasks.metrics import finite

from .module import MiniFormerLitModule


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run reached.

    Attributes:
        folder: the run folder.
        metrics: what the best model reached on the held-out records (`val_`) and the test file (`test_`), and its `step`.
        baselines: what trivial predictors reach on the same records.
        module: the best model, in eval mode.
        data: what it was trained on.
    """

    folder: Path
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    module: MiniFormerLitModule
    data: PreparedData

    def to_data(self) -> dict[str, Any]:
        """The figures as JSON data, with null for what is no finite number."""
        return {"best": finite(self.metrics), "baselines": {name: finite(values) for name, values in self.baselines.items()}}


def baselines_of(data: PreparedData) -> dict[str, dict[str, float]]:
    """What trivial predictors reach on the held-out records. A run that is trained does not fail for want of a comparison."""
    try:
        return dict(data.task.baselines(data.train, data.val, data.tokenizer))
    except Exception as error:
        warnings.warn(f"the baselines could not be measured: {type(error).__name__}: {error}", stacklevel=2)
        return {}
