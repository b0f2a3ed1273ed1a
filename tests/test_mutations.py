"""The list of faults fits the source as it is; whether each is noticed, `python -m tests.mutations` says."""

import sys
from collections import Counter
from pathlib import Path

import pytest

import miniformer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where `python -m tests.mutations` is run

from tests.mutations.fault import Fault  # noqa: E402
from tests.mutations.faults import FAULTS, ROOMS  # noqa: E402

PACKAGE = Path(miniformer.__file__).parent


@pytest.mark.parametrize("room", ROOMS)
def test_each_fault_can_be_put_into_the_source_and_names_tests_that_are_there(room):
    assert [problem for fault in ROOMS[room] if (problem := fault.problem())] == []


def test_every_room_has_faults_of_its_own():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert ROOMS.keys() == rooms | {"plugins"}
    for room, faults in ROOMS.items():
        folder = "plugins" if room == "plugins" else f"miniformer/{room}"
        assert faults
        assert all(fault.file.startswith(f"{folder}/") and fault.harm for fault in faults)
    assert len(FAULTS) >= 80


def test_no_two_faults_have_one_name_or_are_one():
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []
    assert len({(fault.file, fault.before, fault.after) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(("text", "fault", "problem"), [
    ("a = 1\n", Fault("f", "a.py", "1", "1", "", "none"), "nothing is replaced"),
    ("a = 1\n", Fault("f", "a.py", "2", "3", "", "none"), "a.py has '2' 0 times"),
    ("a = 1 + 1\n", Fault("f", "a.py", "1", "2", "", "none"), "a.py has '1' 2 times"),
    ("a = 1\n", Fault("f", "b.py", "1", "2", "", "none"), "there is no b.py"),
    ("def test_a():\n", Fault("f", "a.py", "def", "DEF", "b.py", "none"), "there is no b.py"),
    ("def test_a():\n", Fault("f", "a.py", "def", "DEF", "a.py::test_b", "none"), "a.py has no test_b"),
    ("def test_a():\n", Fault("f", "a.py", "def", "DEF", "a.py::test_a[x] a.py", "none"), ""),
])
def test_what_does_not_fit_any_more_is_told(tmp_path, text, fault, problem):
    (tmp_path / "a.py").write_text(text)
    found = fault.problem(tmp_path)
    assert problem in found and bool(problem) == bool(found)
