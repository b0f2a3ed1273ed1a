import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import miniformer

torch.set_num_threads(1)
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
