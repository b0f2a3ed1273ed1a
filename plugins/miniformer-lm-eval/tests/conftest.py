"""Nothing is downloaded; the models are a small trained one, and small ones as they were drawn."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp()  # where the harness keeps what it read; both are looked at on import

import pytest
import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.inference.load import Trained
from miniformer.inference.pipeline import Pipeline
from miniformer.kernel import Task, build
from miniformer.model.assemblies import assembly_of
from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train

torch.set_num_threads(1)
TEXTS = [f"the cat number {i} sat on the mat and saw {i + 1} birds." for i in range(80)]


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_HOME"])


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a decoder that learnt `TEXTS`."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    config = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}
    return Path(train(TrainConfig(train_path=str(data), work_dir=str(folder / "runs"), max_steps=100, lr=1e-2,
                                  model_config=config)).folder)


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Pipeline]:
    """Makes a pipeline of a model as it was drawn, with sharp outputs."""
    tokenizer = Tokenizer.train(TEXTS, 300)

    def make(task: str, assembly: str = "transformer", **options: Any) -> Pipeline:
        torch.manual_seed(0)
        sizes = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 24, "vocab_size": tokenizer.vocab_size,
                 "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        model = assembly_of(assembly)(TransformerConfig(**{**sizes, **options}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        return Pipeline(Trained(model.eval(), tokenizer, build(Task, task)))

    return make
