"""Files of fields: what is read, and how what is no such file is told."""

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
    (b"a: \x01", ": not YAML: unacceptable character #x0001: special characters are not allowed"),
    (b"a: 2020-13-41", ": not YAML: month must be in 1..12"),
    (b"a: caf\xe9", ": cannot be read: not UTF-8: byte 0xe9 at byte 7"),
    (b"", ": expected a mapping of fields; found nothing"),
    (b"- 1", ": expected a mapping of fields; found list"),
])
def test_what_is_no_file_of_fields_is_told_in_one_line(path, content, told):
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_fields(path)
    assert str(caught.value) == f"{path}{told}"


def test_what_cannot_be_read_is_told(path, tmp_path):
    with pytest.raises(UserError, match=r"run\.yaml: cannot be read: No such file"):
        read_fields(path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_fields(tmp_path)
