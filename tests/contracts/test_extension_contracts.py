"""The contracts of extensions: faults that show in the runs of another process, and a healthy one that breaks nothing.

Extensions with a fault, and the property that names it, are in mutants/extension.py.
"""

import importlib.util
import sys

import pytest
import torch
from pytorch_lightning import Callback

from miniformer.contracts import Outcome, check_component
from miniformer.contracts.kit.check import Suite
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.rehearsal import Runs, rehearse
from miniformer.contracts.kit.torch_functions import TorchFunctions
from miniformer.contracts.promises import extension
from miniformer.kernel import hookimpl

from .mutants.extension import Scaled
from .mutants.run_numbers import DropsTokens

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
    assert {result.property: result.outcome for result in report.results if result.outcome is not Outcome.HELD} == {
        "evaluates-what-it-is-given": Outcome.SKIPPED}, "it has no hook for batches"


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


class Optional(Scaled):
    """An optional hook that is misspelt."""

    @hookimpl(optionalhook=True)
    def model_asembled(self, model):
        model.requires_grad_(False)


class Near(Scaled):
    """A method that is not marked and misspelt as well."""

    def checkpoint_save(self, folder):
        self.folder = folder


class Listening(Callback):
    """A callback with a misspelt method."""

    def on_train_batch_ends(self, trainer, module, outputs, batch, batch_idx):
        self.batches = batch_idx


class Listens(Scaled):
    """An extension that gives this callback."""

    @hookimpl
    def callbacks(self):
        return [Listening()]


class Helped(Scaled):
    """A method whose name is near to a hook, and which a hook uses."""

    @hookimpl
    def callbacks(self):
        return self.callback()

    def callback(self):
        return []


@pytest.mark.parametrize(("cls", "said"), [
    (Optional, "model_asembled names no hook; did you mean 'model_assembled'?"),
    (Near, "Near.checkpoint_save is called by nobody; did you mean 'checkpoint_saved'"),
    (Listens, "Listening.on_train_batch_ends is called by nobody; did you mean 'on_train_batch_end'"), (Helped, "")])
def test_a_name_near_a_hook_is_a_note(cls, said):
    result = Suite(ComponentUnderTest.of("extension", cls)).result("names-near-a-hook-are-hooks")
    assert result.outcome is (Outcome.NOTE if said else Outcome.HELD)
    assert said in result.why


def test_a_correct_extension_may_change_batches_in_training_alone():
    suite = Suite(ComponentUnderTest.of("extension", DropsTokens))
    assert suite.result("evaluates-what-it-is-given").outcome is Outcome.HELD
    assert suite.result("hooks-fit-their-specification").outcome is Outcome.HELD, "its method `metrics` is a helper"


def test_functions_of_torch_that_were_replaced_are_named_and_put_back():
    functions, log_softmax, forward = TorchFunctions(), torch.log_softmax, torch.nn.Linear.forward
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # torch wraps the `step` of the class itself
    try:
        torch.log_softmax = torch.nn.Linear.forward = torch.Tensor.softmax = lambda *given: None
        assert set(functions.replaced()) == {"torch.log_softmax", "torch.nn.Linear.forward", "torch.Tensor.softmax"}
    finally:
        functions.restore()
    assert functions.replaced() == []
    assert torch.log_softmax is log_softmax and torch.nn.Linear.forward is forward
    assert "softmax" not in vars(torch.Tensor)


def test_an_extension_inside_a_function_is_checked_as_far_as_it_can_be():
    class Local(Scaled):
        pass

    report = check_component("extension", Local)
    assert report.ok
    assert "inside a function" in report["installed-is-not-active"].why
