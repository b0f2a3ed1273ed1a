"""The pytest suite: three lines in a plugin run every property, and a fault fails the property that names it."""

import subprocess
import sys

import pytest
from depth import is_thorough

from miniformer.contracts import contract_suite
from miniformer.contracts.kit.suite import usable
from miniformer.kernel import Registry, SpecError, use_registry

ENTRY_POINTS = """
[project.entry-points."miniformer.ffn"]
sine = "acme_parts:Sine"
leaky = "acme_parts:Leaky"
"""

MODULE = '''
import torch
from miniformer.kernel import FeedForward

class Sine(FeedForward):
    """down(sin(up x))."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__(d_model, d_ff)
        self.up, self.down = torch.nn.Linear(d_model, d_ff), torch.nn.Linear(d_ff, d_model)

    def forward(self, x, context):
        return self.down(torch.sin(self.up(x)))

class Leaky(Sine):
    """Looks at the next position."""

    def forward(self, x, context):
        return super().forward(x + x.roll(-1, dims=1), context)
'''

TESTS = f'''from miniformer.contracts import contract_suite

test_contracts = contract_suite(distribution="acme-parts"{"" if is_thorough() else ", examples=3"})
'''


@pytest.mark.slow
def test_three_lines_in_a_third_partys_package_run_the_whole_suite_under_plain_pytest(installed, tmp_path):
    site = installed(tmp_path, MODULE, ENTRY_POINTS)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    code = f"import sys, pytest; sys.path.insert(0, {site!r}); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "-rA", "--rootdir", tmp_path / "tests",
               "-c", "/dev/null", tmp_path / "tests"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert process.returncode == 1, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    passed = [line for line in lines if line.startswith("PASSED")]
    assert any("ffn-acme-parts:leaky-acts-on-each-position" in line for line in failed)
    assert all("acme-parts:leaky" in line for line in failed)
    assert any("ffn-acme-parts:sine-acts-on-each-position" in line for line in passed)
    assert len(passed) > 20
    assert "breaks acts-on-each-position: A token's output depends on that token only." in process.stdout


def test_nothing_to_check_is_an_error():
    with pytest.raises(SpecError, match="is the package installed"):
        contract_suite(distribution="acme-nowhere")
    with pytest.raises(SpecError, match="has a kind"):
        contract_suite(target="mha")


def test_what_can_be_used_is_that_of_the_registry_in_force():
    everything = usable("ffn")
    gelu = next(entry for entry in everything if entry.name == "gelu")
    with use_registry(Registry([gelu])):
        assert [entry.name for entry in usable("ffn")] == ["gelu"]
    assert usable("ffn") == everything
