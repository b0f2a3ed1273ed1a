"""`train(config)`: a whole training run in one call. `python -m miniformer.train.trainer` is `miniformer train`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from .datamodule import MiniFormerDataModule
from .lightning_setup import lightning_trainer, quiet_lightning
from .module import MiniFormerLitModule
from .run import Run
from .run_result import RunResult
from .train_config import TrainConfig

__all__ = ["MiniFormerDataModule", "MiniFormerLitModule", "Run", "RunResult", "TrainConfig", "lightning_trainer",
           "quiet_lightning", "train"]


def train(config: TrainConfig, tokenizer: Any = None, console: Console | None = None) -> RunResult:
    """Train a model as `config` says, and leave a run folder.

    Args:
        config: the run.
        tokenizer: used instead of the one that the config names, or of one trained on the data.
        console: where progress is shown; None: nowhere.

    Raises:
        UserError: the config or the data is wrong; nothing was written.
        RunError: the run failed; what it saved is whole.
        Interrupted: a signal stopped it, after its weights were saved.
    """
    run = Run(config, tokenizer, console)
    run.prepare()
    run.fit()
    return run.finish()


if __name__ == "__main__":
    from miniformer.cli import main

    main(prefix=["train"])
