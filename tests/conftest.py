"""What all tests share: how deep they go, the command line, small data, and runs that are trained once for all of them.

`pytest -n auto` is what CI runs. `pytest -n auto --thorough` runs the same tests at full depth: the items that are marked
`thorough`, more examples of each property, and every command in a process of its own.
"""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start inherit it; a second thread of theirs would only spin

import pytest
import torch
from depth import QUICK, THOROUGH
from hypothesis import settings

import miniformer
from miniformer.cli import main

torch.set_num_threads(1)
# a shell that runs the tests in the background has them, and so their processes, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="test at full depth: all items, seeds and examples")


def pytest_configure(config):
    settings.load_profile(THOROUGH if config.getoption("--thorough") else QUICK)


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `thorough`, unless it is asked for."""
    if config.getoption("--thorough"):
        return
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=thorough)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process neighbouring tests, which share fixtures and what is cached; xdist deals them out in turn instead."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """The same weights in every run and in any order of the tests, and no settings of who runs them."""
    torch.manual_seed(0)
    for name in ("MINIFORMER_PLUGINS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


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
def cli_process(tmp_path):
    """Run the command line as a process, in a folder of its own; check its exit code, and return what it wrote."""
    def run(*args: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **environment}
        # the package that is tested, which need not be the one that is installed
        path = [*filter(None, [environment.get("PYTHONPATH")]), str(Path(miniformer.__file__).parents[1])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        done = subprocess.run([sys.executable, "-m", "miniformer", *args], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, timeout=300)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def cli(cli_here, cli_process, request):
    """Run the command line as `cli_process` does, but in this process, which has imported everything already.

    With variables of the environment, which decide what is imported, it is a process; so it always is in the thorough run.
    """
    def run(*args: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
        if environment or request.config.getoption("--thorough"):
            return cli_process(*args, code=code, **environment)
        return cli_here(*args, code=code)

    return run


@pytest.fixture
def cli_here(tmp_path, monkeypatch):
    """Run the command line in this process in any run, for tests that replace a part of it."""
    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess:
        streams = out, err, none = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(3)]
        with (redirect_stdout(out), redirect_stderr(err), patch.object(sys, "stdin", none), patch.dict(os.environ),
              monkeypatch.context() as folder):
            folder.chdir(tmp_path)
            ended = _exit_code_of(args)
        for stream in streams:
            stream.flush()
        stdout, stderr, _ = (stream.buffer.getvalue().decode() for stream in streams)
        assert ended == code, f"exit {ended}\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(args, code, stdout, stderr)

    return run


def _exit_code_of(args: tuple[str, ...]) -> int:
    """The code with which the command line ends its process, as Python does for an error that nobody caught."""
    try:
        main(args)
    except SystemExit as ended:
        return ended.code
    except Exception:
        traceback.print_exc()
    return 1


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


SOURCES = ("asyncio/", "unittest/", "collections/", "_pydecimal.py", "fractions.py", "glob.py", "random.py")


@pytest.fixture(scope="session")
def _sources():
    from miniformer.data import stdlib

    return [(path, text) for path, text in stdlib.sources() if path.startswith(SOURCES)]


@pytest.fixture
def few_sources(monkeypatch, _sources, request):
    """A standard library of some packages only, as the whole takes seconds to parse; all of it in the thorough run."""
    if not request.config.getoption("--thorough"):
        monkeypatch.setattr("miniformer.data.stdlib.sources", lambda: iter(_sources))


TINY = ("--d-model", "16", "--n-heads", "2", "--n-layers", "1", "--max-seq-len", "32", "--batch-size", "2",
        "--tokenizer-vocab-size", "300")


@pytest.fixture
def tiny():
    """Flags of a model that trains in a moment."""
    return TINY


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Make a folder that the tests of all processes of this run read: `made_once(name, make)` gives what `make(folder)` gave.

    Whoever asks first makes it, and the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, make: Callable[[Path], Path]) -> Path:
        with (root / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if not (result := lock.read()):
                (root / name).mkdir()
                result = str(make(root / name))
                lock.write(result)
        return Path(result)

    return folder


@pytest.fixture(scope="session")
def answering(made_once):
    """The folder of an encoder-decoder's run that has learnt to name the animal of a sentence."""
    animals = ("fox", "dog", "cat", "owl")

    def make(folder: Path) -> Path:
        from miniformer.train.train_config import TrainConfig
        from miniformer.train.trainer import train

        data = folder / "animals.jsonl"
        data.write_text("".join(json.dumps({"source": f"{n} times the {animals[n % 4]} jumps",
                                            "target": f"the {animals[n % 4]}"}) + "\n" for n in range(80)), encoding="utf-8")
        model = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
        return train(TrainConfig(train_path=str(data), task="seq2seq", work_dir=str(folder / "runs"), max_steps=80,
                                 batch_size=8, lr=1e-2, tokenizer_vocab_size=300, precision=32, model_config=model)).folder

    return made_once("answering", make)


@pytest.fixture(scope="session")
def trained(made_once):
    """The folder of a run that has learnt to continue a repeated sentence."""
    def make(folder: Path) -> Path:
        from miniformer.train.train_config import TrainConfig
        from miniformer.train.trainer import train

        data = folder / "fox.jsonl"
        data.write_text("".join(json.dumps({"text": "the quick brown fox jumps over the lazy dog. " * 3 + f"{n}"}) + "\n"
                                for n in range(40)), encoding="utf-8")
        model = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}
        return train(TrainConfig(train_path=str(data), work_dir=str(folder / "runs"), max_steps=60, batch_size=4, lr=1e-2,
                                 tokenizer_vocab_size=320, precision=32, model_config=model)).folder

    return made_once("trained", make)
