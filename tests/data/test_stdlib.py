"""The embedded corpus: Python's own library."""

import ast
import sysconfig
from itertools import islice
from pathlib import Path, PurePosixPath

import pytest
from depth import thorough

from miniformer.data import stdlib
from miniformer.kernel.errors import DataError


@pytest.fixture(scope="module")
def sources():
    return list(stdlib.sources())


@pytest.fixture
def docstrings(few_sources):
    return list(stdlib.docstrings())


def test_there_is_enough_to_learn_from(sources):
    assert sum(len(text) for _, text in sources) > 2_000_000


def test_sources_are_in_order_of_path(sources):
    paths = [PurePosixPath(path) for path, _ in sources]
    assert paths == sorted(paths) and len(set(paths)) == len(paths)


def test_no_tests_and_nothing_installed_is_among_the_sources(sources):
    parts = {part for path, _ in sources for part in PurePosixPath(path).parts}
    assert parts.isdisjoint({"test", "tests", "site-packages", "dist-packages", "__pycache__"})


def test_sources_are_python(sources):
    text = dict(sources)["json/decoder.py"]
    assert ast.parse(text) and "JSONDecodeError" in text


def test_docstrings_are_of_several_packages_that_have_many(docstrings):
    packages = [package for _, package, _ in docstrings]
    assert len(set(packages)) >= 2
    assert min(packages.count(package) for package in set(packages)) >= 60


def test_a_docstring_is_one_paragraph_of_its_package(docstrings):
    for path, package, text in docstrings:
        assert path == f"{package}.py" or path.startswith(f"{package}/")
        assert len(text) >= 20 and "\n" not in text


def test_a_python_without_sources_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"no sources of its standard library .*give --train-path"):
        list(stdlib.sources())


def test_sources_that_cannot_be_read_are_left_out(monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert list(stdlib.sources()) == [("good.py", "x = 1\n")]


def test_a_source_that_does_not_parse_has_no_docstrings(monkeypatch, tmp_path):
    functions = "\n".join(f'def f{i}():\n    """What function number {i} does."""' for i in range(60))
    (tmp_path / "good.py").write_text(functions)
    (tmp_path / "bad.py").write_text(functions + "\ndef (:\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert {package for _, package, _ in stdlib.docstrings()} == {"good"}


def test_functions_are_short_and_stand_alone():
    for where, node, source in islice(stdlib.functions(longest=200), 300):
        assert len(source) <= 200
        [again] = ast.parse(source).body
        assert again.name == node.name
        assert ast.get_docstring(again) is None, where


def test_a_function_on_one_line_with_its_docstring_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text('def f(): "What it does."; return 1\n\ndef g(): return 2\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert [text for _, _, text in stdlib.functions()] == ["def g(): return 2\n"]


def test_a_function_is_what_stands_at_its_place():
    root = Path(sysconfig.get_path("stdlib"))
    for where, node, _ in islice(stdlib.functions(), 50):
        path, _, line = where.partition(":")
        assert f"def {node.name}" in (root / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


@thorough  # it parses all of the library
def test_described_functions_have_a_name_and_a_sentence():
    found = {name: text for _, name, text in stdlib.described()}
    assert found["to_eng_string"] == "Convert to a string, using engineering notation if an exponent is needed."
    assert all(len(text) >= 20 and not name.startswith("__") for name, text in found.items())
