"""The contracts of extensions: faults that show in the runs of another process, and a healthy one that breaks nothing.

Extensions with a fault, and the property that names it, are in mutants/extension.py.
"""

import importlib.util
import sys

import pytest
import torch

from miniformer.contracts import Outcome, check_component
from miniformer.contracts.kit.rehearsal import Runs, rehearse
from miniformer.contracts.promises import extension

from .mutants.extension import Scaled

PATCHING = '''
import torch
from miniformer.kernel import hookimpl

torch.nn.Linear.reset_parameters = lambda self: torch.nn.init.constant_(self.weight, 0.01)

class Eager:
    @hookimpl
    def callbacks(self):
        return []
'''


@pytest.mark.slow
def test_a_healthy_extension_breaks_no_promise():
    report = check_component("extension", Scaled)
    assert report.ok, report.explain()
    assert all(result.outcome is Outcome.HELD for result in report.results)


@pytest.mark.parametrize(("runs", "name", "reason"), [
    (Runs("a", "a", "a", refused="it serves models of 7 layers"), "a-run-with-it-ends", "models of 7 layers"),
    (Runs(untried="its module cannot be imported: acme"), "installed-is-not-active",
     "in another process its module cannot be imported: acme"),
], ids=["it refuses", "it cannot be imported there"])
def test_runs_that_could_not_be_made_are_skipped_with_the_reason(monkeypatch, runs, name, reason):
    monkeypatch.setattr(extension, "rehearse", lambda cls, options: runs)
    extension._rehearsed.cache_clear()
    result = check_component("extension", Scaled)[name]
    extension._rehearsed.cache_clear()
    assert result.outcome is Outcome.SKIPPED
    assert reason in result.why


@pytest.mark.slow
def test_a_change_that_importing_it_makes_is_noticed(tmp_path, monkeypatch):
    """The module is loaded from its file, since no other process could import it by name."""
    path = tmp_path / "patching.py"
    path.write_text(PATCHING)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", torch.nn.Linear.reset_parameters)  # put back after the test
    spec = importlib.util.spec_from_file_location("patching_of_the_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    runs = rehearse(module.Eager, {})
    assert runs.imported != runs.before
    assert runs.after == runs.imported
    assert not runs.failed and not runs.refused


def test_an_extension_inside_a_function_is_checked_as_far_as_it_can_be():
    class Local(Scaled):
        pass

    report = check_component("extension", Local)
    assert report.ok
    assert "inside a function" in report["installed-is-not-active"].why
