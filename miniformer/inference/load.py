"""A trained model, ready to use, from the folder of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from miniformer.checkpoint.provenance import migrating, other_versions
from miniformer.checkpoint.store import CONFIG, TOKENIZER, SavedModel, read_model
from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.kernel.errors import UserError
from miniformer.kernel.spec import build
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_of
from miniformer.model.assembly import BlockAssembly


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in eval mode with the tokenizer (one without tokens if it reads features) and the task of its training."""

    model: BlockAssembly
    tokenizer: Tokenizer
    task: Task
    notes: tuple[str, ...] = ()

    def prompt(self, text: str) -> list[int]:
        """Token ids of what the model is given to write after, or of a text that it reads as a whole."""
        return self.task.prompt(text, self.tokenizer) if self.model.generates else self.tokenizer.encode_whole(text)


def load(path: str | Path | SavedModel) -> Trained:
    """The best model of a run folder, or the model of a folder that holds one, which may have been read already.

    `notes` names providers whose version is not the one that the model was trained with, if it fits all the same; none: what is
    installed is identical.

    Raises:
        UserError: no model is there, it is damaged, a package of it is missing, or it does not fit what is installed.
    """
    saved = path if isinstance(path, SavedModel) else read_model(Path(path))
    with migrating(saved.config):
        config = TransformerConfig.model_validate(saved.config["model"])
        if config.input_dim is None and not (saved.folder / TOKENIZER).is_file():
            raise UserError(f"{saved.folder}: no {TOKENIZER}; this model was not saved by a training run")
        if "task" not in saved.config:
            raise UserError(f"{saved.folder}: no 'task' in {CONFIG}; this model was not saved by a training run")
        task = build(Task, saved.config["task"])
    model = assembly_of(saved.config.get("assembly", "transformer")).from_saved(saved)
    notes = tuple(f"compatible: trained with {name} {then}; this is {now}" for name, then, now in other_versions(saved.config))
    tokenizer = Tokenizer.load(saved.folder) if config.input_dim is None else NoTokenizer()
    return Trained(model, tokenizer, task, notes)


def load_on_best_device(path: str | Path | SavedModel) -> Trained:
    """The same, with its weights on a GPU if there is one."""
    trained = load(path)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return trained
