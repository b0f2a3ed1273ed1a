"""Several processes: with ragged accumulated batches they have the gradient of the one big batch, and they leave one run."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import pytorch_lightning as pl
from torch.utils.data import DataLoader
from test_module import Recording, lm

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.manual_seed(0)
config, examples = lm()

def gradient(parts, devices):
    torch.manual_seed(1)
    module = Recording(config)
    trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp", max_epochs=1, precision="64-true", logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         accumulate_grad_batches=len(parts), use_distributed_sampler=False)
    trainer.fit(module, DataLoader([module.task.collate(part) for part in parts], batch_size=None))
    return module, module.gradients[0]

module, shared = gradient([[examples[:1], examples[1:2]], [examples[2:4], examples[4:]]][rank], world)
torch.manual_seed(1)
whole = Recording(config).double()
term = whole._loss(whole.task.collate(examples))
(term.sum / term.weight).backward()
for got, parameter in zip(shared, whole.model.parameters(), strict=True):
    torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)
Path(sys.argv[1], f"equal-on-{{rank}}").touch()  # the processes' standard output is one stream, which may mix their words
"""


def torchrun(*command):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command],
                          capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_ragged_batches_of_two_processes_have_the_gradient_of_the_one_big_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob("equal-on-*")) == ["equal-on-0", "equal-on-1"]


@pytest.mark.slow
def test_train_under_torchrun_leaves_one_run_and_speaks_once(tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"the {n}th of some short texts"}) + "\n" for n in range(150)))
    options = {"train-path": data, "work-dir": tmp_path / "runs", "d-model": 16, "n-layers": 1, "n-heads": 2, "batch-size": 2,
               "max-seq-len": 16, "max-epochs": 1, "gpus": 0}
    done = torchrun("-m", "miniformer", "train", *(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder: ") == done.stdout.count("reading ") == 1
    assert "Warning" not in done.stderr
    assert done.stdout.count("2 processes, each with its own batches of batch_size = 2: a step has 4 rows") == 1
    assert done.stderr.count("8 held-out records, so a figure measured on them says little") == 1
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != ".cache")
    step = json.loads((run / "run.json").read_text())["results"]["best"]["step"]
    with (run / "metrics.csv").open() as file:
        measured = [row["step"] for row in csv.DictReader(file) if row["val_loss"]]
    assert measured == [str(int(step) - 1)], "an epoch of each process's batches, and then a measurement"
