"""The progress bar of commands that read a file: bytes, records a second, time left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniformer.data.jsonl import Line


@contextmanager
def reading(source: Path, doing: str, *, hidden: bool = False) -> Iterator[Callable[[Line], None]]:
    """Show a bar on standard error, if that is a terminal; yields a function to call with each line that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from miniformer.data.jsonl import STDIN

    console = Console(stderr=True)
    bar = Progress(TextColumn(doing), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden or not console.is_terminal)
    shown = bar.add_task("", total=None if source == STDIN else source.stat().st_size, rate="")
    started, count = time.monotonic(), itertools.count(1)

    def advance(line: Line) -> None:
        rate = next(count) / max(time.monotonic() - started, 1e-9)
        bar.update(shown, advance=len(line.text.encode()) + 1, rate=f"{rate:,.0f}/s")

    with bar:
        yield advance
