"""Reports of the contract kit: outcomes, reasons for skips, and failures with their smallest example."""

import logging
import math
import random
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field

from miniformer.contracts import Outcome, check_component
from miniformer.contracts.kit.case import relative_difference
from miniformer.contracts.kit.check import ABILITIES, Suite
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.report import sentences
from miniformer.kernel import FeedForward, Norm, RunError, SpecError, UnknownComponent
from miniformer.model.norm import RMSNorm

from .mutants.attention import ForgetsToMaskTheFuture, MixesDocuments
from .mutants.ffn import MixesTokens, Plain
from .mutants.position import AbilityWithoutProof


def result(cls, name, kind="ffn", **settings):
    return Suite(ComponentUnderTest.of(kind, cls), **settings).result(name)


def test_a_report_has_one_result_a_property_in_order_and_is_json_data():
    report = check_component("ffn", Plain, examples=2)
    names = [r.property for r in report.results]
    assert names == Suite(ComponentUnderTest.of("ffn", Plain)).names
    assert len(set(names)) == len(names) > 10
    assert report.ok
    assert report.explain() == ""
    data = report.to_dict()
    assert data["ok"] is True
    assert data["results"][0]["outcome"] == "held"
    assert data["results"][0]["examples"] > 0


def test_the_same_seed_gives_the_same_report_and_another_draws_other_examples():
    def outcome(seed):
        failure = result(MixesDocuments, "documents-do-not-mix", "attention", seed=seed)
        return failure.why, failure.example, failure.examples

    assert outcome(3) == outcome(3)
    assert len({outcome(seed) for seed in range(5)}) > 1


def test_a_failure_is_reported_with_its_smallest_example_and_its_damage_in_training():
    failure = result(ForgetsToMaskTheFuture, "no-look-ahead", "attention")
    assert failure.outcome is Outcome.FAILED
    assert failure.why == "the output at column 0 changes with the input at column 1, which is later in the same document"
    assert "layout 11" in failure.example  # two tokens of one document, and no more
    assert "options {}" in failure.example
    assert "read its answer from the future" in failure.consequence
    text = sentences(failure)
    assert "attention ForgetsToMaskTheFuture breaks no-look-ahead: In a causal model" in text
    assert "in training: " in text


def test_properties_that_do_not_concern_a_component_are_skipped_with_the_reason():
    report = check_component("attention", "linear", examples=2)
    assert report["a-bias-counts"].outcome is Outcome.SKIPPED
    assert report["a-bias-counts"].why == "it applies no bias"
    assert report["compiles"].why == "only when asked to be thorough"


def test_an_ability_that_nothing_proved_is_a_failure():
    failure = result(AbilityWithoutProof, ABILITIES, "position", examples=2)
    assert failure.outcome is Outcome.FAILED
    assert "`learns_bias` is declared" in failure.why


class Tanh(Norm):
    """A norm that bounds its input and does not measure it."""

    known_violations: ClassVar = {"brings-to-scale": "a tanh bounds its input"}

    def forward(self, x):
        return torch.tanh(x)


def test_a_declared_violation_is_reported_as_such_and_is_no_failure():
    report = check_component("norm", Tanh, examples=5)
    assert report["brings-to-scale"].outcome is Outcome.EXPECTED
    assert report["brings-to-scale"].why.startswith("a tanh bounds its input (seen: ")
    assert report.ok, report.explain()


class Mended(RMSNorm):
    known_violations: ClassVar = {"brings-to-scale": "a tanh bounds its input"}


def test_a_declared_violation_that_is_none_is_a_failure():
    failure = result(Mended, "brings-to-scale", "norm")
    assert failure.outcome is Outcome.FAILED
    assert failure.why == "it declares that it breaks this promise (a tanh bounds its input), and it keeps it"


class Misspelt(Tanh):
    known_violations: ClassVar = {**Tanh.known_violations, "brings-to-scales": "no such promise"}


def test_a_declared_violation_of_an_unknown_property_is_a_failure():
    failure = result(Misspelt, ABILITIES, "norm")
    assert failure.outcome is Outcome.FAILED
    assert "'brings-to-scales', which is no property" in failure.why


class Raises(Plain):
    def forward(self, x, context):
        raise ZeroDivisionError("never mind")


def test_any_exception_of_a_component_is_a_failure_with_its_text():
    why = result(Raises, "acts-on-each-position").why
    assert why.startswith("ZeroDivisionError: never mind at ")
    assert why.endswith(' in forward: `raise ZeroDivisionError("never mind")`')


class NeedsAGPU(Plain):
    def forward(self, x, context):
        raise RunError("it runs on a GPU only")


def test_a_component_that_says_it_cannot_run_here_is_skipped():
    assert result(NeedsAGPU, "acts-on-each-position").outcome is Outcome.SKIPPED


class Careful(Plain):
    """Looks at values to decide what it computes. That works on every device but meta, whose tensors have no values."""

    def forward(self, x, context):
        return super().forward(x / 2 if x.abs().max() > 1e3 else x, context)


def test_a_component_that_looks_at_values_is_not_failed_for_the_meta_device():
    checked = result(Careful, "keeps-dtype-and-device")
    assert checked.outcome is Outcome.HELD, checked.why


class Moody(Plain):
    calls: ClassVar = []

    def forward(self, x, context):
        self.calls.append(1)
        return super().forward(x, context) + (x.mean(dim=1, keepdim=True) if len(self.calls) == 12 else 0)


def test_a_check_that_fails_once_and_then_passes_is_a_failure_that_says_so():
    failure = result(Moody, "acts-on-each-position")
    assert failure.outcome is Outcome.FAILED
    assert "depends on more than its inputs" in failure.why


class Picky(FeedForward):
    """Refuses widths, and options that do not go together."""

    def __init__(self, d_model: int, d_ff: int, *, parts: Annotated[int, Field(ge=1)] = 1, whole: bool = False) -> None:
        if d_ff % 2 or (whole and parts > 1):
            raise ValueError("no")
        super().__init__(d_model, d_ff)
        self.layer = torch.nn.Linear(d_model, d_model, bias=whole)
        self.parts = parts

    def forward(self, x, context):
        return self.layer(x) * self.parts


def test_options_and_sizes_that_a_component_refuses_do_not_count_as_examples():
    report = check_component("ffn", Picky, examples=5)
    assert report.ok, report.explain()
    assert report["rows-stand-alone"].examples == 5


def test_fixed_options_win_over_those_that_are_drawn():
    under_test = ComponentUnderTest.of("attention", {"name": "mha", "window": 2})
    assert under_test.build({"d_model": 8, "n_heads": 2}, {"window": 5}).rule.size == 2


def test_what_is_no_number_is_far_from_every_number():
    numbers, expected = torch.tensor([1.0, math.nan]), torch.ones(2)
    assert relative_difference(numbers, expected) == math.inf


def test_fixed_options_are_not_drawn():
    report = check_component("attention", {"name": "mha", "window": 2}, examples=3)
    assert report.ok, report.explain()
    with pytest.raises(SpecError, match="window"):
        check_component("attention", {"name": "mha", "window": 0})


def test_unknown_names_and_wrong_classes_are_errors():
    with pytest.raises(UnknownComponent, match="did you mean: rope-mha"):
        check_component("attention", "rope-mah")
    with pytest.raises(SpecError, match="there is no kind 'attentoin'"):
        check_component("attentoin", "mha")
    with pytest.raises(SpecError, match="subclasses"):
        check_component("attention", Plain)


def test_checking_leaves_threads_logging_and_random_state_as_they_were():
    torch.set_num_threads(2)
    before = torch.get_num_threads(), logging.getLogger("miniformer").level, random.getstate(), torch.get_rng_state()
    report = check_component("ffn", MixesTokens, examples=3)
    first, _, rest = report.explain().partition("\n")
    assert first.startswith(f"{len(report.failed)} promises are broken")
    assert rest == "\n".join(map(sentences, report.failed)) != ""
    after = torch.get_num_threads(), logging.getLogger("miniformer").level, random.getstate(), torch.get_rng_state()
    torch.set_num_threads(1)
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


def test_it_works_without_pytest(fresh_python):
    code = """
import sys
sys.modules["pytest"] = None
from miniformer.contracts import check_component
print(check_component("norm", "rmsnorm", examples=2).ok)
"""
    assert fresh_python(code) == "True"
