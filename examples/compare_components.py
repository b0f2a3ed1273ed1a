"""Train a small model with different components on the same data, and compare the held-out losses.

    python examples/compare_components.py my.jsonl --steps 200
"""

import argparse
import tempfile

from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train

VARIANTS = {
    "rope, swiglu": {},
    "learned, gelu": {"position": "learned", "ffn": "gelu"},
    "no position": {"position": "none"},
    "multi-query": {"attention": {"name": "mha", "n_kv_heads": 1}},
    "window of 16": {"attention": {"name": "mha", "window": 16}},
}

parser = argparse.ArgumentParser()
parser.add_argument("train_path", nargs="?", default="stdlib")
parser.add_argument("--steps", type=int, default=200)
options = parser.parse_args()

model = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}
with tempfile.TemporaryDirectory() as folder:
    for name, parts in VARIANTS.items():
        result = train(TrainConfig(train_path=options.train_path, max_steps=options.steps, work_dir=folder,
                                   tokenizer_vocab_size=1024, model_config={**model, **parts}))
        parameters = sum(p.numel() for p in result.module.model.parameters())
        print(f"{name:15} {parameters:9,} parameters  held-out loss {result.metrics['val_loss']:.3f}")
