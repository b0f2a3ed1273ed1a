"""A trained model, ready to use, from the folder of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from miniformer.checkpoint.provenance import migrating, other_versions
from miniformer.checkpoint.record import note_on_run
from miniformer.checkpoint.store import CONFIG, TOKENIZER, SavedModel, read_model
from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.kernel.errors import SpecError, UserError
from miniformer.kernel.spec import build
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_of
from miniformer.model.assembly import BlockAssembly
from miniformer.tasks.collate import end_of


@dataclass(frozen=True, slots=True, repr=False)
class Trained:
    """A trained model in eval mode, with the task and the tokenizer of its training (`NoTokenizer` if it reads features).

    Attributes:
        notes: what a user should know before using it, a line each; see `load`.
        folder: where it was loaded from, as it was given.
    """

    model: BlockAssembly
    tokenizer: Tokenizer
    task: Task
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def summary(self) -> str:
        """What it is, in a few words: the assembly, the task, how large it is, and where it was loaded from."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        place = "" if self.folder is None else f", from {str(self.folder)!r}"
        return f"{self.model.assembly} for {type(self.task).__name__}, {size:,} parameters{place}"

    @property
    def eos_id(self) -> int | None:
        """The token that ends what the model writes; None: only its length ends a text."""
        return end_of(self.model, self.tokenizer)

    def prompt(self, text: str) -> list[int]:
        """A text as the token ids that the model reads: of a prompt where it writes, otherwise of a whole text."""
        return self.task.prompt(text, self.tokenizer) if self.model.generates else self.tokenizer.encode_whole(text)


def load(path: str | Path | SavedModel) -> Trained:
    """Load the best model of a run folder, or the model of a folder that holds one.

    The notes of the result say if the run is not finished, and name the packages that are installed in another version than the
    model was trained with, where the model fits all the same. No notes: it is the best model of a finished run, and everything
    is installed in the version of its training.

    Args:
        path: the folder, or what `read_model` has read of it.

    Raises:
        UserError: there is no model, it is damaged, a package of it is missing, or it does not fit what is installed.
    """
    saved = path if isinstance(path, SavedModel) else read_model(Path(path))
    try:
        with migrating(saved.config):
            config = TransformerConfig.model_validate(saved.config["model"])
            if config.input_dim is None and not (saved.folder / TOKENIZER).is_file():
                raise UserError(f"{saved.folder}: no {TOKENIZER}; this model was not saved by a training run")
            if "task" not in saved.config:
                raise UserError(f"{saved.folder}: no 'task' in {CONFIG}; this model was not saved by a training run")
            task = build(Task, saved.config["task"])
    except SpecError as error:
        raise SpecError(f"{saved.folder / CONFIG}: {error}") from error
    model = assembly_of(saved.config.get("assembly", "transformer")).from_saved(saved)
    versions = [f"compatible: trained with {name} {then}; this is {now}" for name, then, now in other_versions(saved.config)]
    notes = tuple(filter(None, [note_on_run(saved.folder), *versions]))
    tokenizer = Tokenizer.load(saved.folder) if config.input_dim is None else NoTokenizer()
    return Trained(model, tokenizer, task, notes, folder=saved.folder if isinstance(path, SavedModel) else Path(path))


def load_on_best_device(path: str | Path | SavedModel) -> Trained:
    """Load a model as `load` does, and put its weights on a GPU if there is one."""
    trained = load(path)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return trained
