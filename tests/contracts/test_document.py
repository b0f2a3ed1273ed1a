"""docs/contracts.md says what the properties say."""

from pathlib import Path

from miniformer.contracts.kit.document import MARK, document
from miniformer.contracts.kit.properties import properties_of
from miniformer.kernel.kinds import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")


def test_the_page_is_made_of_the_docstrings():
    assert PAGE.partition(MARK)[2] == "\n" + document()


def test_every_property_says_what_it_promises_and_what_it_protects_from():
    for kind in KINDS:
        for prop in properties_of(kind):
            assert prop.promise.endswith(".")
            assert prop.consequence.endswith(".")
            assert f"### `{prop.name}`" in PAGE


def test_names_are_unique_within_a_kind():
    for kind in KINDS:
        names = [prop.name for prop in properties_of(kind)]
        assert len(set(names)) == len(names)
