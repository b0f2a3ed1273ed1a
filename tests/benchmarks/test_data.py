"""The benchmark of the input runs and measures what it says."""

import subprocess
import sys
from pathlib import Path

import pytest
from depth import thorough


@thorough
@pytest.mark.slow
def test_the_benchmark_of_the_input_measures_all_that_it_promises():
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.data", "1"], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name.strip(): float(value) for name, _, value in (line.rpartition(" ") for line in done.stdout.splitlines())}
    assert all(value > 0 for name, value in found.items() if name.endswith(("MB/s", "ms", "encode_batch")))
    assert len([name for name in found if name.startswith("padding")]) == 7
    assert all(value < 0.05 for name, value in found.items() if name.startswith("padding"))
