"""Reports say what is so: one seed gives one, and they tell what was not looked at, where it failed, which fault is first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from depth import is_thorough
from hypothesis.internal.conjecture import providers

import miniformer
from miniformer.contracts import Outcome, Result, check_component, contract_suite
from miniformer.contracts.kit import catalogue, check, library_internals
from miniformer.contracts.kit.check import IMPORTS_COUNT, Suite
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Property, properties_of
from miniformer.contracts.kit.report import Report
from miniformer.contracts.kit.root_cause import BASIC_FIRST, LEAST
from miniformer.kernel import Norm, SpecError
from miniformer.kernel.kinds import KINDS

from .mutants.ffn import MixesTokens, NormalisesOverTheBatch, Plain
from .mutants.norm import NormalisesOverTheSequence, StaysInFloat32
from .mutants.recipes import DividesByWhatIsLeft
from .test_mutants import MUTANTS

ONLY = ["acts-on-each-position", "padding-changes-nothing", "rows-stand-alone"]
OF_A_PROCESS = f"""
import json, sys
import torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import odd_numbers
torch.manual_seed(5)
torch.set_num_threads(2)
from contracts.mutants.ffn import MixesTokens
from contracts.test_honest_reports import report_without_seconds
print(json.dumps(report_without_seconds(MixesTokens)))
"""


def report_without_seconds(cls):
    report = check_component(None, cls, examples=12, seed=4, only=ONLY, shrinks=False).to_dict()
    for result in report["results"]:
        del result["seconds"]
    return report


def test_one_seed_gives_one_report_in_processes_with_other_imports(tmp_path):
    numbers = ", ".join(str(n * 7919 % 65536) for n in range(3, 900))
    (tmp_path / "odd_numbers.py").write_text(f"NUMBERS = [{numbers}]\nNAMES = ['left', 'right', 'mha']\n")
    path = os.pathsep.join([str(tmp_path), str(Path(miniformer.__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", OF_A_PROCESS], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "77"},
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(json.dumps(report_without_seconds(MixesTokens)))
    assert report["notes"] == []
    assert "seed" not in report["results"][0]["example"]
    assert any(result["why"] for result in report["results"])


def test_where_hypothesis_cannot_be_kept_from_it_the_report_says_that_imports_count(monkeypatch):
    monkeypatch.delattr(providers, "_get_local_constants")
    library_internals._without_constants.cache_clear()
    with library_internals.no_constants_of_modules() as steady:
        assert not steady
    assert check.report_of(ComponentUnderTest.of("ffn", Plain), []).notes == (IMPORTS_COUNT,)
    monkeypatch.undo()
    library_internals._without_constants.cache_clear()
    with library_internals.no_constants_of_modules() as steady:
        assert steady
        assert not list(providers._get_local_constants().set_for_type("integer"))


def test_held_says_what_was_not_looked_at(monkeypatch):
    def keeps_quiet(case):
        """It is quiet. In training: noise."""
        case.component(options={})
        case.unseen = {"training mode, since it draws random numbers"}

    quiet = Property("keeps-quiet", frozenset({"ffn"}), keeps_quiet)
    monkeypatch.setattr(check, "properties_of", lambda kind: [quiet])
    result = Suite(ComponentUnderTest.of("ffn", Plain), examples=2).result("keeps-quiet")
    assert (result.outcome, result.examples) == (Outcome.HELD, 2)
    assert result.not_looked_at() == "not looked at: training mode, since it draws random numbers"
    assert Report("ffn", "Plain", [result]).to_dict()["results"][0]["unseen"] == list(result.unseen)


class WrongWidth(Norm):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.out = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.out(x[..., :-1])


def test_an_exception_is_told_with_the_innermost_line_of_the_component():
    report = check_component(None, WrongWidth, only=["acts-on-each-vector", "keeps_precision", "keeps-dtype-and-device"],
                             examples=2, shrinks=False)
    for result in report.failed:
        assert result.why.startswith("RuntimeError: ")
        assert result.why.endswith("in forward: `return self.out(x[..., :-1])`")
        assert "contracts/test_honest_reports.py:" in result.place
    assert len(report.failed) == 3
    assert report.explain().startswith("3 promises are broken, perhaps by one fault; 3 of them end at "
                                       f"{report.failed[0].place}; the first is probably acts-on-each-vector\n")
    assert report.to_dict()["probably_first"] == "acts-on-each-vector"


def failure(name, place=""):
    return Result("ffn", "x", name, Outcome.FAILED, "", why="broken", place=place)


def test_failures_at_one_line_are_one_group_whose_first_is_told():
    at_a_line = [failure("gradients-are-right", "a.py:3 in f"), failure("runs-under-autocast", "a.py:3 in f")]
    assert Report("ffn", "x", [*at_a_line, failure("rows-stand-alone")]).probably_first.property == "gradients-are-right"
    two = [failure("hides-nothing"), failure("rows-stand-alone")]
    assert Report("ffn", "x", two).probably_first.property == "rows-stand-alone"
    assert Report("ffn", "x", [failure("rows-stand-alone")]).probably_first is None


LIARS = [cls for cls in MUTANTS if cls.kind != "extension"] if is_thorough() else [
    MixesTokens, NormalisesOverTheBatch, NormalisesOverTheSequence, StaysInFloat32, DividesByWhatIsLeft]


def test_the_first_of_many_is_mostly_the_property_that_names_the_fault(capsys):
    named = []
    for cls in LIARS:
        report = Suite(ComponentUnderTest.of(cls.kind, cls), examples=10 if is_thorough() else 3, shrinks=False).report()
        torch.set_float32_matmul_precision("highest")  # which one of them changes
        if report.probably_first is not None:
            named.append(report.probably_first.property == cls.caught_by)
    with capsys.disabled():
        print(f"\nof {len(named)} liars that break several promises, the first is named right for {sum(named)}")
    assert sum(named) >= 0.7 * len(named) > 0


def test_the_order_of_causes_names_properties_and_each_once():
    names = {prop.name for kind in KINDS for prop in properties_of(kind)}
    assert {*BASIC_FIRST, *LEAST} <= names
    assert len({*BASIC_FIRST, *LEAST}) == len(BASIC_FIRST) + len(LEAST)


def test_the_list_that_is_read_from_source_is_that_of_the_properties():
    def facts(properties):
        return [(prop.name, prop.promise, prop.consequence, prop.thorough, prop.note) for prop in properties]

    for kind in KINDS:
        assert facts(catalogue.listed(kind)[:-1]) == facts(properties_of(kind))


def test_only_chosen_properties_are_checked_and_other_names_are_errors():
    report = check_component("ffn", Plain, only=["rows_stand_alone", "is-the-same-twice-in-eval"], examples=1)
    assert [result.property for result in report.results] == ["is-the-same-twice-in-eval", "rows-stand-alone"]
    with pytest.raises(SpecError, match="did you mean 'rows-stand-alone'"):
        check_component("ffn", Plain, only=["rows-stand-alon"])
    suite = contract_suite(target=Plain, only=["rows-stand-alone"], shrinks=False)
    parameters = suite.pytestmark[0].args[1]
    assert [one.id for one in parameters] == ["ffn-Plain-rows-stand-alone"]
    assert not parameters[0].values[0].shrinks
    with pytest.raises(SpecError, match="has a kind"):
        check_component(target="mha")
