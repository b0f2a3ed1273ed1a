"""How long it takes from the command to the first step, beside importing torch and Lightning alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from miniformer.data.stdlib import NAME

from .machine import machine

IMPORTS = ("-c", "import torch, pytorch_lightning")
DATA = ("-c", "import sys, time, miniformer.train.trainer as t; c = t.TrainConfig(train_path=sys.argv[2]); "
              "s = time.perf_counter(); t.MiniFormerDataModule(c, None).data; print(time.perf_counter() - s)")
STEPS = 10
"""So many lines a run writes where there is no terminal; of so many steps, one each."""
TRAIN = ("-m", "miniformer", "train", "--max-steps", str(STEPS), "--batch-size", "1", "--d-model", "32", "--n-heads", "2",
         "--n-layers", "1", "--max-seq-len", "32")


def measure(rounds: int, small: bool = False) -> dict[str, Any]:
    """Seconds: `imports`; `data`, that of a default run read and made into tokens, once all is imported; `output`, until
    `miniformer train` has said something; `first_step`, until a small model's first step is over; `startup`, without the data.

    Args:
        small: of a few texts, instead of the embedded corpus.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": f"{n} words " * 20}) + "\n" for n in range(50)))
        return _measured(rounds, ("--train-path", str(path) if small else NAME))


def _measured(rounds: int, corpus: Sequence[str]) -> dict[str, Any]:
    if NAME in corpus:
        _timed((*DATA, *corpus))  # what is kept of its data is there from now on
    seconds: dict[str, list[float]] = {name: [] for name in ("imports", "data", "output", "first_step", "startup")}
    for _ in range(rounds):
        seconds["imports"].append(_timed(IMPORTS)[-1][0])
        data = float(_timed((*DATA, *corpus))[-2][1])  # its last line; notes on the data come before
        lines = _timed((*TRAIN, *corpus))
        first = next((at for at, line in lines if line.startswith("step 1/")), None)
        if first is None:
            raise RuntimeError(f"miniformer train told of no first step; it said {[line for _, line in lines]}")
        for name, value in (("data", data), ("output", lines[0][0]), ("first_step", first), ("startup", first - data)):
            seconds[name].append(value)
    return {"setting": {**machine(), "rounds": rounds}, **{name: median(values) for name, values in seconds.items()},
            "samples": seconds}


def _timed(arguments: Sequence[str]) -> list[tuple[float, str]]:
    """When a process of Python wrote which line, in seconds from its start; last, when it ended."""
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        with subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
            assert process.stdout is not None
            lines = [(perf_counter() - start, line.rstrip("\n")) for line in process.stdout]
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments[:4])} ended with code {process.returncode}: {lines[-1:]}")
        return [*lines, (perf_counter() - start, "")]
