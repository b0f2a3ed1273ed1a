"""The two training commands of the product brief with all their flags, on a few records and for two steps."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from miniformer.model.assemblies import assembly_of

LANGUAGE_MODEL = r"""
python -m miniformer.train.trainer \
  --train_path data/train.jsonl \
  --val_path data/val.jsonl \
  --task language_modeling \
  --model seq2seq \
  --model_config '{"vocab_size":50257,"d_model":384,"n_heads":6,"n_layers":6,"activation":"swiglu","rotary_pct":0.5}' \
  --batch_size 16 \
  --max_epochs 5 \
  --lr 5e-4 \
  --weight_decay 0.01 \
  --scheduler cosine \
  --warmup_steps 100 \
  --gradient_clip_val 1.0 \
  --accumulate_grad_batches 2 \
  --logger tensorboard \
  --work_dir "./runs" \
  --experiment_name "my_lm" \
  --seed 42
"""
CLASSIFIER = r"""
python -m miniformer.train.trainer \
  --train_path data/classification_train.jsonl \
  --val_path data/classification_val.jsonl \
  --task classification \
  --model transformer \
  --model_config '{"vocab_size":30000,"d_model":256,"n_heads":8,"n_layers":4,"output_dim":10}' \
  --batch_size 32 \
  --max_epochs 10 \
  --lr 3e-4 \
  --scheduler onecycle \
  --logger wandb
"""


def run(folder, command):
    """Run it as a process, in `folder`, for two steps."""
    python, *words = shlex.split(command.replace("\\\n", " "))
    assert python == "python"
    done = subprocess.run([sys.executable, *words, "--max_steps", "2"], cwd=folder, capture_output=True, text=True,
                          timeout=600, env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_language_model_is_trained(folder):
    text = run(folder, LANGUAGE_MODEL)
    record = json.loads((folder / "runs" / "my_lm" / "run.json").read_text())
    assert "run folder: runs/my_lm" in text
    assert (record["train"]["model"], record["task"]["name"]) == ("seq2seq", "prefix-lm")
    assert record["model"]["position"]["pct"] == 0.5
    assert record["train"]["accumulate_grad_batches"] == 2
    assert list((folder / "runs" / "my_lm" / "tensorboard").glob("events.out.tfevents.*"))
    model = assembly_of("seq2seq").from_pretrained(folder / "runs" / "my_lm" / "checkpoints" / "best_model")
    assert model.embedding.weight.shape == (50257, 384)


@pytest.mark.slow
def test_a_classifier_is_trained(folder):
    text = run(folder, CLASSIFIER)
    [run_folder] = (folder / "runs").iterdir()
    assert f"run folder: runs/{run_folder.name}" in text
    assert list((run_folder / "wandb").glob("offline-run-*"))
    model = assembly_of("transformer").from_pretrained(run_folder)
    assert (model.head.n_outputs, model.config.n_layers, model.config.causal) == (10, 4, False)


def test_help_tells_all_options():
    done = subprocess.run([sys.executable, "-m", "miniformer.train.trainer", "--help"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0
    for flag in ("--train-path", "--model", "--model-config", "--scheduler", "--logger", "--experiment-name"):
        assert flag in done.stdout
