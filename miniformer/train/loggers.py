"""Loggers that cannot end a run which is over, and whose errors name the file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger

from miniformer.checkpoint.atomic import reported

logger = logging.getLogger(__name__)


def guarded(loggers: Iterable[Logger]) -> list[Logger]:
    """The loggers, changed in place.

    Where one cannot write during training, the run ends with a `WriteError` that names its file. Where one fails when it is
    closed, which Lightning does after training and after each measurement, that is a warning.
    """
    loggers = list(loggers)
    for one in loggers:
        place = Path(one.log_dir or one.save_dir or one.name or "")
        place = place / "metrics.csv" if isinstance(one, CSVLogger) else place
        for method, guard in (("log_metrics", _reporting), ("save", _reporting), ("finalize", _harmless)):
            setattr(one, method, guard(getattr(one, method), place))
    return loggers


def _reporting(method: Callable[..., Any], place: Path) -> Callable[..., Any]:
    @wraps(method)
    def called(*args: Any, **options: Any) -> Any:
        with reported(place):
            return method(*args, **options)

    return called


def _harmless(method: Callable[..., Any], place: Path) -> Callable[..., Any]:
    @wraps(method)
    def called(*args: Any, **options: Any) -> None:
        try:
            with reported(place):
                method(*args, **options)
        except Exception as error:
            logger.warning(f"the last figures may be missing from the logs: {error}")

    return called
