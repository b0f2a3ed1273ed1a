import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import miniformer

torch.set_num_threads(1)
# a shell that runs the tests in the background has them, and so their processes, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("miniformer", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("miniformer")


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """The same weights in every run and in any order of the tests, and no settings of who runs them."""
    torch.manual_seed(0)
    monkeypatch.delenv("MINIFORMER_PLUGINS", raising=False)


@pytest.fixture
def fresh_python():
    """Run code in a new interpreter; returns what it prints."""
    def run(code: str, *path: str) -> str:
        path = os.pathsep.join([*path, str(Path(miniformer.__file__).parents[1])])
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def texts(tmp_path):
    """A JSONL file of short texts for language modelling."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {n} of {n * n} is a number, and {n} is {n % 7}"}) + "\n"
                            for n in range(42)), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path):
    """A JSONL file of short texts with string labels."""
    path = tmp_path / "labelled.jsonl"
    words = {"tool": ("hammer", "saw", "drill"), "fruit": ("apple", "pear", "plum")}
    path.write_text("".join(json.dumps({"input": f"a {words[label][n % 3]} of {n}", "label": label}) + "\n"
                            for n in range(60) for label in words), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path):
    """A JSONL file of texts and the texts that answer them."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": f"say {n} please", "target": f"{n}"}) + "\n" for n in range(60)),
                    encoding="utf-8")
    return path


@pytest.fixture
def cli(tmp_path):
    """Run the command line as a process, in a folder of its own."""
    def run(*args: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, "-m", "miniformer", *args], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, **environment}, timeout=300)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def installed():
    """Build and install a third party's module with pip, as a wheel, in a folder of its own; returns what goes on the path."""
    def install(folder: Path, module: str, entry_points: str) -> str:
        (folder / "pyproject.toml").write_text(f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "acme-parts"
version = "1.5"
dependencies = ["miniformer"]
{entry_points}
[tool.hatch.build.targets.wheel]
only-include = ["acme_parts.py"]
""")
        (folder / "acme_parts.py").write_text(module)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "dist", folder], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site",
                        *(folder / "dist").glob("*.whl")], check=True)
        return str(folder / "site")

    return install


TINY = ("--d-model", "16", "--n-heads", "2", "--n-layers", "1", "--max-seq-len", "32", "--batch-size", "2",
        "--tokenizer-vocab-size", "300")


@pytest.fixture
def tiny():
    """Flags of a model that trains in a moment."""
    return TINY


@pytest.fixture(scope="session")
def answering(tmp_path_factory):
    """The folder of an encoder-decoder's run that has learnt to name the animal of a sentence."""
    from miniformer.train.train_config import TrainConfig
    from miniformer.train.trainer import train

    folder = tmp_path_factory.mktemp("answering")
    data = folder / "animals.jsonl"
    animals = ("fox", "dog", "cat", "owl")
    data.write_text("".join(json.dumps({"source": f"{n} times the {animals[n % 4]} jumps", "target": f"the {animals[n % 4]}"})
                            + "\n" for n in range(80)), encoding="utf-8")
    model = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
    return train(TrainConfig(train_path=str(data), task="seq2seq", work_dir=str(folder / "runs"), max_steps=80, batch_size=8,
                             lr=1e-2, tokenizer_vocab_size=300, precision=32, model_config=model)).folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run that has learnt to go on with a repeated sentence."""
    from miniformer.train.train_config import TrainConfig
    from miniformer.train.trainer import train

    folder = tmp_path_factory.mktemp("trained")
    data = folder / "fox.jsonl"
    data.write_text("".join(json.dumps({"text": "the quick brown fox jumps over the lazy dog. " * 3 + f"{n}"}) + "\n"
                            for n in range(40)), encoding="utf-8")
    model = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}
    return train(TrainConfig(train_path=str(data), work_dir=str(folder / "runs"), max_steps=60, batch_size=4, lr=1e-2,
                             tokenizer_vocab_size=320, precision=32, model_config=model)).folder
