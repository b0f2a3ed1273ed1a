"""Loading a trained model in two steps: its folder is checked before torch is imported, then the model is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miniformer.checkpoint.store import SavedModel, read_model

if TYPE_CHECKING:
    from miniformer.inference.load import Trained


def read_saved(run: Path, source: Path | None = None) -> SavedModel:
    """The saved model of a folder. The input file `source` is checked too, before torch is imported.

    Raises:
        UserError: no usable model is there, or the file cannot be read.
    """
    from miniformer.data.jsonl import STDIN, check_file

    saved = read_model(run)
    if source not in (None, STDIN):
        check_file(source)
    return saved


def load_for_use(saved: SavedModel) -> Trained:
    """The model, ready to use, on a GPU if there is one. Notes on it, such as a changed version, go to standard error."""
    from miniformer.inference.load import load_on_best_device

    trained = load_on_best_device(saved)
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    return trained
