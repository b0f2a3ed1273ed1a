"""What is no failure: a variable of the environment is a note, and what could not be looked at is said."""

from miniformer.contracts.kit.case import Case
from miniformer.contracts.kit.check import Suite
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.module_runner import RANDOM_TRAINING, set_mode
from miniformer.contracts.kit.report import Outcome

from .mutants import ffn, modules


def test_a_variable_of_the_environment_is_a_note():
    result = Suite(ComponentUnderTest.of("ffn", modules.ReadsItsWidthElsewhere)).result("reads-no-environment")
    assert (result.outcome, result.why) == (Outcome.NOTE, "it reads ACME_WIDTH")
    assert Suite(ComponentUnderTest.of("ffn", ffn.Plain)).result("reads-no-environment").outcome is Outcome.HELD


class Training:
    """Draws training mode."""

    def draw(self, strategy):
        return "training"


def test_a_module_that_draws_random_numbers_is_trained_where_shapes_stay_and_said_to_be_unseen_elsewhere():
    module = modules.Dropping(8, 16).double()
    for same_shapes in (True, False):
        case = Case(ComponentUnderTest.of("ffn", modules.Dropping), Training())
        case.last_sizes = {"d_model": 8}
        set_mode(case, module, same_shapes)
        assert module.training == same_shapes
        assert case.unseen == (set() if same_shapes else {RANDOM_TRAINING})
