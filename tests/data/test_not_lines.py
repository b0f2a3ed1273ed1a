"""Files that are JSON or a table, but no JSON lines: what they are called, and the command that makes JSON lines of them."""

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel

from miniformer.data.jsonl import read_records
from miniformer.kernel.errors import DataError


class Text(BaseModel):
    text: str


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.jsonl"


def told(path, content):
    """The error of a file with this content, without the path."""
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        list(read_records(path, Text))
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '[\n  {"text": "a"},\n  {"text": "b"}\n]'])
def test_one_json_array_is_told_with_the_line_that_makes_json_lines_of_it(path, content):
    message = told(path, content)
    assert message.startswith(":1: the file is one JSON array; expected one object in each line; to write it so: python -c ")
    command = message.partition("write it so: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert [record.text for _, record in read_records(path.with_name("train-lines.jsonl"), Text)] == ["a", "b"]


def test_objects_over_several_lines_are_told_with_what_makes_json_lines_of_them(path):
    pretty = json.dumps({"text": "a", "more": {"x": [1, 2]}}, indent=2)
    assert told(path, f'{{"text": "a"}}\n{pretty}\n{pretty}\n') == (
        f":2: a JSON object over several lines; expected each object in one line; to write it so: jq -c . {path} > "
        f"{path.with_name('train-lines.jsonl')}")


def test_one_object_that_holds_the_records_is_told_with_their_field(path):
    content = json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}, indent=1)
    assert """the objects in its field 'data' are written so by: jq -c '.["data"][]' """ in told(path, content)


def test_an_object_that_has_no_end_is_told_where_it_breaks_off(path):
    assert told(path, '{"text": "a"\n{"text": "b"}\n').startswith(":1: not JSON: Expecting ',' delimiter at column 13; found")


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_table_is_told_with_the_line_that_makes_json_lines_of_it(path, name):
    path = path.with_name(name)
    message = told(path, 'id,text\n1,"a, b"\n2,c\n')
    assert message.startswith(":1: a table with columns, not JSON; expected one object in each line; to write it so: python -c")
    command = message.partition("write it so: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    made = path.with_name("train.jsonl" if name == "train.csv" else "train-lines.jsonl")
    assert [record.text for _, record in read_records(made, Text)] == ["a, b", "c"]


@pytest.mark.parametrize(("rest", "what"), [
    (",", "a comma after the object"), (' {"text": "b"}', "more than one object in the line"),
    ('\r{"text": "b"}', "more than one object in the line"), ("x", "something after the first value")])
def test_what_follows_an_object_in_its_line_is_told(path, rest, what):
    assert told(path, '{"text": "a"}' + rest).startswith(f":1: not JSON: {what} at column ")
