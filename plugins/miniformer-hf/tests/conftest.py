"""Nothing is downloaded, and every test starts from the same seed."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # checkpoints.py, beside this file

import pytest
import torch
import transformers
from hypothesis import settings

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
settings.register_profile("quick", derandomize=True, deadline=None, database=None, max_examples=10)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=30)  # pytest --hypothesis-profile=thorough
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
