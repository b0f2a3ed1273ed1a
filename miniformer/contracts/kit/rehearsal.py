"""Short training runs in a process of their own, to see what an extension changes.

    python -m miniformer.contracts.kit.rehearsal '{"module": ..., "file": ..., "cls": ..., "options": {...}}'

A small model is trained for two steps, four times: before the extension's module is imported, after that, with the extension
active, and once more without it. Between them, functions of torch and settings of the process are compared. One JSON object is
printed, a `Runs`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miniformer.kernel.errors import UserError
from miniformer.kernel.registry import Entry, Registry, discover, use_registry
from miniformer.train.processes import death_of

from .case import SETTINGS
from .torch_functions import TorchFunctions

ON_TRIAL = "on-trial"
"""The name under which the extension is registered for these runs."""
LIMIT = 300
"""Seconds that all of them may take."""


@dataclass(frozen=True)
class Runs:
    """The results of the runs.

    Attributes:
        before: digest of the weights that a run without the extension reaches before its module is imported.
        imported: digest of a run without the extension, after its module is imported.
        after: digest of a run without the extension, after a run in which it was active.
        refused: the error message, if the run with the extension was refused; else "".
        failed: the exception, if the run with the extension failed; else "".
        import_changes: the functions of torch and the settings of the process that importing the module changes; else "".
        run_changes: those that are others after the run with the extension than before it; else "".
        untried: the reason why nothing could be run: a new process cannot import the module, or a run without the extension
            fails there; else "".
    """

    before: str = ""
    imported: str = ""
    after: str = ""
    refused: str = ""
    failed: str = ""
    untried: str = ""
    import_changes: str = ""
    run_changes: str = ""


def rehearse(cls: type, options: Mapping[str, Any]) -> Runs:
    """Run training in a new process, without and with an extension.

    Args:
        cls: its class, which the new process imports by the name of its module, or from the module's file.
        options: its options.
    """
    module = sys.modules[cls.__module__]
    request = {"module": module.__name__, "file": getattr(module, "__file__", None), "cls": cls.__qualname__,
               "options": options}
    try:
        process = subprocess.run([sys.executable, "-m", __name__, json.dumps(request)], capture_output=True, text=True,
                                 timeout=LIMIT, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    except subprocess.TimeoutExpired:
        return Runs(untried=f"the process of the trial runs did not end within {LIMIT} seconds")
    if process.returncode < 0:
        return Runs(untried=f"the process of the trial runs {death_of(process.returncode)}")
    if process.returncode:
        return Runs(untried=f"a run without it fails: {process.stderr.strip()[-300:]}")
    last_line = process.stdout.strip().rpartition("\n")[2]
    return Runs(**json.loads(last_line))


def _train(folder: Path, extensions: Mapping[str, Any]) -> str:
    """Train for two steps and return a digest of the weights."""
    from miniformer.train.train_config import TrainConfig
    from miniformer.train.trainer import train

    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} times {n} is {n * n}"}) + "\n" for n in range(12)), encoding="utf-8")
    config = TrainConfig.model_validate({
        "train_path": str(texts), "val_path": str(texts), "work_dir": str(folder / "runs"), "max_steps": 2, "batch_size": 2,
        "tokenizer_vocab_size": 300, "precision": 32, "gpus": 0, "extensions": dict(extensions),
        "model_config": {"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}})
    model = train(config).module.model
    weights = (f"{name} {value.dtype} ".encode() + value.numpy().tobytes() for name, value in model.state_dict().items())
    return hashlib.sha256(b"".join(weights)).hexdigest()


def _import(module: str, file: str | None) -> None:
    """Import a module by its name, or from its file if this process cannot find it by name."""
    try:
        importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, file) if file else None
        if spec is None or spec.loader is None:
            raise
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])


class _Process:
    """What a run has no business to leave changed: the functions of torch, and its settings but random states."""

    def __init__(self) -> None:
        self.functions, self.settings = TorchFunctions(), _settings()

    def changes(self) -> str:
        """The names of what changed since this was made."""
        others = [f"the {name}" for name, value in _settings().items() if value != self.settings[name]]
        return ", ".join(others + self.functions.replaced())


def _settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SETTINGS.items() if not name.startswith("random state")}


def main(request: Mapping[str, Any]) -> Runs:
    """Do all runs in this process."""
    with tempfile.TemporaryDirectory() as root:
        def run(name: str, extensions: Mapping[str, Any]) -> str:
            folder = Path(root) / name
            folder.mkdir()
            return _train(folder, extensions)

        before = run("before", {})
        process = _Process()
        # here, __main__ is this module: a class of a script is imported from the script's file
        module = "extension_on_trial" if request["module"] == "__main__" else request["module"]
        try:
            _import(module, request["file"])
        except Exception as error:  # a module may fail in any way
            return Runs(untried=f"its module cannot be imported: {type(error).__name__}: {error}")
        import_changes = process.changes()
        entry = Entry("extension", ON_TRIAL, f"{module}:{request['cls']}", "contracts", "0")
        with use_registry(Registry([*discover(), entry])):
            imported = run("imported", {})
            process = _Process()
            refused = failed = ""
            try:
                run("active", {ON_TRIAL: request["options"]})
            except UserError as error:
                refused = str(error)
            except Exception as error:  # an extension may fail in any way
                frame = traceback.extract_tb(error.__traceback__)[-1]
                failed = f"{type(error).__name__}: {error} ({Path(frame.filename).name}, {frame.name})"
            run_changes = process.changes()
            return Runs(before, imported, run("after", {}), refused, failed, import_changes=import_changes,
                        run_changes=run_changes)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(asdict(main(json.loads(sys.argv[1])))) + "\n")
