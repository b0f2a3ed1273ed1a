"""The generated half of docs/contracts.md agrees with the docstrings of the properties."""

from pathlib import Path

from miniformer.contracts.kit.document import MARK, document
from miniformer.contracts.kit.properties import properties_of
from miniformer.kernel.kinds import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")


def test_the_page_is_generated_from_the_docstrings():
    assert PAGE.partition(MARK)[2] == "\n" + document()


def test_every_property_says_its_promise_and_the_damage_of_breaking_it():
    for kind in KINDS:
        for prop in properties_of(kind):
            assert prop.promise.endswith(".")
            assert prop.consequence.endswith(".")
            assert f"### `{prop.name}`" in PAGE


def test_names_are_unique_within_a_kind():
    for kind in KINDS:
        names = [prop.name for prop in properties_of(kind)]
        assert len(set(names)) == len(names)
