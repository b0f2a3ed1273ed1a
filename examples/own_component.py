"""Train with an attention that is defined in this script, and compare it with `mha`.

    python examples/own_component.py my.jsonl --steps 200

This is a way to try an idea before packaging it. The script makes a registry of all installed components and the class below,
and `use_registry` makes it the current one inside its block. The README shows how to package a class, so that it can be shared
and used from the command line.
"""

import argparse
import tempfile

import torch

from miniformer.kernel import Attention, Entry, Registry, discover, use_registry
from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train


class CausalMean(Attention):
    """Computes a token's output from the mean over the tokens of its document up to it, without queries and keys."""

    causal_only = True

    def __init__(self, d_model: int, n_heads: int, *, gate: bool = True):
        super().__init__(d_model, n_heads)
        self.value, self.out = torch.nn.Linear(d_model, d_model), torch.nn.Linear(d_model, d_model)
        self.gate = torch.nn.Linear(d_model, d_model) if gate else None

    def forward(self, x, context, state=None):
        mask = context.mask()  # which tokens each token may see: causality, documents and padding in one
        T = x.shape[1]
        allowed = torch.ones(T, T, device=x.device).tril() if mask.causal else mask.allowed[:, 0].to(x.dtype)
        mean = allowed @ self.value(x) / allowed.sum(dim=-1, keepdim=True)
        return self.out(mean if self.gate is None else mean * torch.sigmoid(self.gate(x)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("train_path", nargs="?", default="stdlib")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    entry = Entry("attention", "causal-mean", "__main__:CausalMean", distribution="my-script", version="0")
    with use_registry(Registry([*discover(), entry])), tempfile.TemporaryDirectory() as folder:
        for attention in ("causal-mean", "mha"):
            result = train(TrainConfig(
                train_path=options.train_path, max_steps=options.steps, work_dir=folder, tokenizer_vocab_size=1024,
                model_config={"d_model": 64, "n_layers": 2, "max_seq_len": 128, "attention": attention}))
            print(f"{attention:12} held-out loss {result.metrics['val_loss']:.3f}")
