"""Files of fields: what is read, and how what is no such file is told."""

import json
from itertools import pairwise

import pytest

from miniformer.data.yaml_file import read_fields
from miniformer.kernel.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


@pytest.mark.parametrize("text", ["lr: 0.5\nmodel: {d: [1, 2]}\n", '{"lr": 0.5, "model": {"d": [1, 2]}}',
                                  "base: &b {d: [1, 2]}\nlr: 0.5\nmodel: {<<: *b}\n",
                                  "base: &b {d: 3}\nlr: 0.5\nmodel: {<<: *b, d: [1, 2]}\n"])
def test_fields_are_read(path, text):
    path.write_text(text)
    found = read_fields(path)
    assert (found["lr"], found["model"]) == (0.5, {"d": [1, 2]})


@pytest.mark.parametrize(("content", "told"), [
    (b"lr: 1\nseed: 2\nlr: 3\n", ":3: not YAML: field 'lr' occurs twice at column 1"),
    (b'{"a": {"b": 1, "b": 2}}', ":1: not YAML: field 'b' occurs twice at column 16"),
    (b"a: 1\nlr: [\n",
     ":3: not YAML: while parsing a flow node: expected the node content, but found '<stream end>' at column 1"),
    (b"b: 1\na: \x01", ":2: not YAML: unacceptable character #x0001: special characters are not allowed"),
    (b"b: 1\na: caf\xe9", ":2: cannot be read: not UTF-8: byte 0xe9 at byte 12; save the file as UTF-8"),
    (b"a:\n\tb: 1", ":2: not YAML: a tab, and YAML is indented by spaces at column 1"),
    (b"a: 2\n1: 2", ":2: not YAML: the name of a field is 1; expected a text, in quotes if need be at column 1"),
    (b"true: 2", ":1: not YAML: the name of a field is true; expected a text, in quotes if need be at column 1"),
    (b"? [a]\n: 2", ":1: not YAML: the name of a field is a sequence; expected a text, in quotes if need be at column 3"),
    (b"a: &a [*a]", ":1: not YAML: an anchor contains itself at column 4"),
    (b"a: !!bool x", ":1: not YAML: 'x' is not what its tag 'tag:yaml.org,2002:bool' says at column 4"),
    (b"a: !!timestamp x", ":1: not YAML: 'x' is not what its tag 'tag:yaml.org,2002:timestamp' says at column 4"),
    (b'a: "\\ud800"', ":1: not YAML: half of a surrogate pair, which no text has at column 4"),
    (b"a: " + b"[" * 2000, ": not YAML: it is nested too deeply"),
    (b"", ": expected a mapping of fields; found nothing"),
    (b"- 1", ": expected a mapping of fields; found list"),
])
def test_what_is_no_file_of_fields_is_told_in_one_line(path, content, told):
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_fields(path)
    assert str(caught.value) == f"{path}{told}"


@pytest.mark.parametrize(("written", "read"), [
    ("1e-3", 0.001), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-2.5e+3", -2500.0), ("+5", 5), ("0x1F", 31), ("true", True),
    ("~", None), ("", None)])
def test_what_json_or_yaml_calls_a_number_is_one(path, written, read):
    path.write_text(f"a: {written}")
    assert read_fields(path)["a"] == read


@pytest.mark.parametrize("written", ["010", "08", "1_000", "1:30", "yes", "no", "on", "Off", "2024-01-01", "0o17", "0b11", "=",
                                     "1.2.3", "NaN", "1e3_0", "x y"])
def test_what_yaml_1_1_reads_as_something_else_is_the_text_that_is_seen(path, written):
    path.write_text(f"a: {written}\nno: 1\n")
    assert read_fields(path) == {"a": written, "no": 1}


def test_a_file_may_begin_with_a_byte_order_mark(path):
    for text in ("lr: 0.5", '{"lr": 0.5}'):
        path.write_text(text, encoding="utf-8-sig")
        assert read_fields(path) == {"lr": 0.5}


def test_json_is_read_as_json(path):
    data = {"text": "\U0001f600\u2028\x7f", "floats": [1e-3, 1e5], "whole": 10**20, "none": None}
    for indent in (None, 2, "\t"):
        path.write_text(json.dumps(data, indent=indent))
        assert read_fields(path) == data


def test_broken_json_is_told_as_json_by_its_suffix(path):
    path = path.with_suffix(".json")
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(UserError) as caught:
        read_fields(path)
    assert str(caught.value) == f"{path}:2: not JSON: Expecting ':' delimiter at column 6"


def test_anchors_that_multiply_are_refused(path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghi")]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"run\.yaml:5: not YAML: more than 100,000 values, with those that anchors repeat"):
        read_fields(path)


def test_what_cannot_be_read_is_told(path, tmp_path):
    with pytest.raises(UserError, match=r"run\.yaml: cannot be read: No such file"):
        read_fields(path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_fields(tmp_path)
