"""A trained model, ready to use, from the folder of its run."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import torch

from miniformer.checkpoint.store import CONFIG, TOKENIZER, read_model
from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.kernel.errors import UserError
from miniformer.kernel.spec import build
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_of
from miniformer.model.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in eval mode with the tokenizer (one without tokens if it reads features) and the task of its training."""

    model: Assembly
    tokenizer: Tokenizer
    task: Task
    notes: tuple[str, ...] = ()


def load(path: str | Path) -> Trained:
    """The best model of a run folder, or the model of a folder that holds one.

    `notes` names providers whose version is not the one that the model was trained with.

    Raises:
        UserError: no model is there, it is damaged, or a component of it is not installed.
    """
    saved = read_model(Path(path))
    config = TransformerConfig.model_validate(saved.config["model"])
    if config.input_dim is None and not (saved.folder / TOKENIZER).is_file():
        raise UserError(f"{saved.folder}: no {TOKENIZER}; this model was not saved by a training run")
    if "task" not in saved.config:
        raise UserError(f"{saved.folder}: no 'task' in {CONFIG}; this model was not saved by a training run")
    task = build(Task, saved.config["task"])
    model = assembly_of(saved.config.get("assembly", "transformer")).from_saved(saved)
    notes = []
    for name, version in saved.config.get("providers", {}).items():
        if (now := importlib.metadata.version(name)) != version:
            notes.append(f"trained with {name} {version}; this is {now}")
    tokenizer = Tokenizer.load(saved.folder) if config.input_dim is None else NoTokenizer()
    return Trained(model, tokenizer, task, tuple(notes))


def load_on_best_device(path: str | Path) -> Trained:
    """The same, with its weights on a GPU if there is one."""
    trained = load(path)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return trained
