"""Faults in the contract kit: promises that are not checked, and reports that say too little."""

from ..fault import Fault

CHECK, MUTANTS = "tests/contracts/test_check.py", "tests/contracts/test_mutants.py"


def caught(*names: str) -> str:
    """The tests that wrong components are caught by the kit, by kind and name of the component."""
    return " ".join(f"{MUTANTS}::test_mutants_are_caught_by_the_property_that_names_their_fault[{name}]" for name in names)


FAULTS = (
    Fault("a-broken-promise-is-held", "miniformer/contracts/kit/check.py",
          "return _failed(ran, message_of(error, whole=True), error, story())", "return _Run(ran, Outcome.HELD)", CHECK,
          "every component passes"),
    Fault("a-component-that-fails-has-held", "miniformer/contracts/kit/check.py", "except Exception as error:  #",
          "except KeyError as error:  #", CHECK, "checking ends in a traceback"),
    Fault("a-seed-draws-nothing-else", "miniformer/contracts/kit/check.py", "@seeded_with(suite.seed)", "@seeded_with(0)",
          CHECK, "check --seed does nothing"),
    Fault("a-breach-that-is-none-may-be-declared", "miniformer/contracts/kit/check.py", "outcome is Outcome.HELD:",
          "outcome is Outcome.NOTE:", f"{CHECK}::test_a_declared_violation_that_is_none_is_a_failure",
          "a mended component goes on being called broken"),
    Fault("an-ability-needs-no-proof", "miniformer/contracts/kit/check.py", "unproved.append(ability)", "pass", CHECK,
          "what was never shown is relied on"),
    Fault("the-smallest-example-is-not-told", "miniformer/contracts/kit/check.py",
          'return last_case[0].describe() if last_case else ""', 'return ""', CHECK, "nobody learns for which sizes it fails"),
    Fault("draws-hang-on-imports", "miniformer/contracts/kit/library_internals.py", "yield True", "yield False",
          "tests/contracts/test_honest_reports.py", "a report says that its draws depend on imports"),
    Fault("a-line-in-torch-is-blamed", "miniformer/contracts/kit/fault_place.py",
          "if not _is_library(frame.f_code.co_filename)]", "]", "tests/contracts/test_honest_reports.py",
          "nobody learns which line of the component failed"),
    Fault("what-was-not-looked-at-is-not-told", "miniformer/contracts/kit/check.py",
          'unseen.update(getattr(last_case[0], "unseen", ()))', "pass", "tests/contracts/test_honest_reports.py",
          "held is read as more than was checked"),
    Fault("any-failure-is-the-first", "miniformer/contracts/kit/report.py", "return min(group,", "return max(group,",
          "tests/contracts/test_honest_reports.py", "people look for the fault where it is not"),
    Fault("only-checks-everything", "miniformer/contracts/kit/check.py", "if not self.only or name in self.only]", "]",
          "tests/contracts/test_honest_reports.py tests/cli/test_check.py", "check --only takes as long as check"),
    Fault("a-report-is-always-fine", "miniformer/contracts/kit/report.py", "return not self.failed", "return True",
          f"{CHECK} tests/cli/test_check.py::test_one_that_does_not_ends_with_1_and_the_reason",
          "check ends with 0 whatever it finds"),
    Fault("options-that-are-given-are-drawn-over", "miniformer/contracts/kit/component_under_test.py",
          "{**options, **self.fixed}", "{**self.fixed, **options}",
          f"{CHECK}::test_fixed_options_win_over_those_that_are_drawn",
          "check --set checks something else"),
    Fault("tensors-may-be-far-apart", "miniformer/contracts/kit/case.py", "if difference > tolerance:", "if difference > 1e3:",
          caught("attention-MixesDocuments", "norm-NormalisesOverTheSequence"), "wrong numbers pass"),
    Fault("nan-equals-everything", "miniformer/contracts/kit/case.py", "math.inf if math.isnan(difference)",
          "0.0 if math.isnan(difference)", f"{CHECK}::test_what_is_no_number_is_far_from_every_number",
          "components that give NaN pass"),
    Fault("settings-may-be-changed", "miniformer/contracts/kit/case.py", "require(not changed,", "require(True,",
          caught("attention-ChangesASetting"), "a component changes the precision of the whole process"),
    Fault("predictions-may-be-far-apart", "miniformer/contracts/kit/task_harness.py", "require(close, ", "require(True, ",
          "tests/contracts/test_task_contracts.py::test_values_that_differ_are_reported", "tasks with wrong losses pass"),
    Fault("no-window-is-ever-checked", "miniformer/contracts/kit/attention_harness.py",
          "return allowed if rule is None else allowed & rule.allows(layout, layout)", "return allowed",
          f"{CHECK}::test_fixed_options_are_not_drawn", "an attention with a window is called faulty"),
    Fault("no-row-is-padded-or-packed", "miniformer/contracts/kit/drawing.py", "= (FULL, LEFT, RIGHT, HOLES, PACKED, MIXED),",
          "= (FULL,),", "tests/contracts/test_drawing.py::test_full_padded_and_packed_rows_are_all_drawn",
          "what hears padding passes"),
    Fault("pytest-says-that-all-is-well", "miniformer/contracts/kit/suite.py", "if result.outcome is Outcome.FAILED:",
          "if False:", "tests/contracts/test_suite.py", "a plugin's own tests never fail"),
    Fault("a-property-s-docstring-is-cut", "miniformer/contracts/kit/properties.py", 'parts[3] or ""', '""',
          "tests/contracts/test_document.py", "docs/contracts.md does not say where a bug was seen"),
)
