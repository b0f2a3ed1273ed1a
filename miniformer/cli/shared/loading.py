"""How commands come to a trained model: its folder is looked at before torch is imported, and notes on it are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miniformer.checkpoint.store import SavedModel, read_model

if TYPE_CHECKING:
    from miniformer.inference.load import Trained


def read_saved(run: Path, source: Path | None = None) -> SavedModel:
    """The saved model of a folder, and where one is given a file that can be read: what is wrong with them is told at once.

    Raises:
        UserError: no usable model is there, or the file cannot be read.
    """
    from miniformer.data.jsonl import STDIN, check_file

    saved = read_model(run)
    if source not in (None, STDIN):
        check_file(source)
    return saved


def load_for_use(saved: SavedModel) -> Trained:
    """The model, ready to use, on a GPU if there is one."""
    from miniformer.inference.load import load_on_best_device

    trained = load_on_best_device(saved)
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    return trained
