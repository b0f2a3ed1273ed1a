"""Short runs in a process of their own, to see what importing an extension, naming it and having named it change.

    python -m miniformer.contracts.kit.rehearsal '{"module": ..., "file": ..., "cls": ..., "options": {...}}'

It trains a small model for two steps: before the extension's module is imported, after, with the extension active, and once
more without. It prints one JSON object, a `Runs`.
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

ON_TRIAL = "on-trial"


@dataclass(frozen=True)
class Runs:
    """What came of the runs.

    Attributes:
        before, imported, after: digests of the weights without the extension: before its module is imported, when it is, and
            after the run in which it was active.
        refused: what the user was told where that run was refused; else "".
        failed: how that run failed; "" where it ended.
        untried: why there were no such runs: a new process cannot import the module, or a run without it fails there.
    """

    before: str = ""
    imported: str = ""
    after: str = ""
    refused: str = ""
    failed: str = ""
    untried: str = ""


def rehearse(cls: type, options: Mapping[str, Any]) -> Runs:
    """The runs of an extension's class, which a new process can import by its module and name, or from its file."""
    module = sys.modules[cls.__module__]
    what = {"module": module.__name__, "file": getattr(module, "__file__", None), "cls": cls.__qualname__, "options": options}
    done = subprocess.run([sys.executable, "-m", __name__, json.dumps(what)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    if done.returncode:
        return Runs(untried=f"a run without it fails: {done.stderr.strip()[-300:]}")
    return Runs(**json.loads(done.stdout.strip().rpartition("\n")[2]))


def _run(folder: Path, extensions: Mapping[str, Any]) -> str:
    """The digest of the weights that two steps lead to."""
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


def _imported(module: str, file: str | None) -> None:
    """Import a module by its name, or where it has none in this process from its file."""
    try:
        importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, file) if file else None
        if spec is None or spec.loader is None:
            raise
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])


def main(what: Mapping[str, Any]) -> Runs:
    """All runs, in this process."""
    with tempfile.TemporaryDirectory() as place:
        def run(name: str, extensions: Mapping[str, Any]) -> str:
            folder = Path(place) / name
            folder.mkdir()
            return _run(folder, extensions)

        before = run("before", {})
        name = "extension_on_trial" if what["module"] == "__main__" else what["module"]
        try:
            _imported(name, what["file"])
        except Exception as error:  # a module may fail in any way
            return Runs(untried=f"its module cannot be imported: {type(error).__name__}: {error}")
        entry = Entry("extension", ON_TRIAL, f"{name}:{what['cls']}", "contracts", "0")
        with use_registry(Registry([*discover(), entry])):
            imported = run("imported", {})
            refused = failed = ""
            try:
                run("active", {ON_TRIAL: what["options"]})
            except UserError as error:
                refused = str(error)
            except Exception as error:  # an extension may fail in any way
                where = traceback.extract_tb(error.__traceback__)[-1]
                failed = f"{type(error).__name__}: {error} ({Path(where.filename).name}, {where.name})"
            return Runs(before, imported, run("after", {}), refused, failed)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(asdict(main(json.loads(sys.argv[1])))) + "\n")
