"""JSONL files: what is read, and the one line that tells each fault."""

import gzip
import json
import os
import threading
from pathlib import Path

import depth
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, StrictInt, StrictStr

from miniformer.data.jsonl import STDIN, check_file, read_records, validated
from miniformer.kernel.errors import DataError


class Text(BaseModel):
    text: str


class ManyLabels(BaseModel):
    labels: list[StrictInt | StrictStr]


class Labelled(BaseModel):
    input: str
    label: StrictInt | StrictStr


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.jsonl"


def read(path, content, record=Text):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(path, record))


def told(path, content, record=Text):
    """The error of a file with this content, without the path."""
    with pytest.raises(DataError) as caught:
        read(path, content, record)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable(), "one line, fit for a terminal"
    return message.removeprefix(str(path))


def test_a_record_comes_with_its_file_and_line(path):
    assert read(path, '{"text": "a"}\n{"text": "b"}\n') == [
        (f"{path}:1", Text(text="a")), (f"{path}:2", Text(text="b"))]


def test_a_path_may_be_a_string(path):
    path.write_text('{"text": "a"}')
    assert len(list(read_records(str(path), Text))) == 1


def test_the_last_line_needs_no_newline(path):
    assert len(read(path, '{"text": "a"}\n{"text": "b"}')) == 2


def test_windows_line_ends_are_line_ends(path):
    assert [record.text for _, record in read(path, '{"text": "a"}\r\n{"text": "b"}\r\n')] == ["a", "b"]


def test_blank_lines_are_skipped_and_counted(path):
    found = read(path, '\n  \n{"text": "a"}\n\t\n{"text": "b"}\n\n')
    assert [where for where, _ in found] == [f"{path}:3", f"{path}:5"]


def test_other_fields_are_passed_over(path):
    assert read(path, '{"id": 7, "text": "a"}')[0][1] == Text(text="a")


def test_a_byte_order_mark_is_no_part_of_the_first_record(path):
    assert read(path, b'\xef\xbb\xbf{"text": "a"}')[0][1] == Text(text="a")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u00a0"])
def test_a_unicode_separator_in_a_string_splits_no_line(path, separator):
    assert read(path, f'{{"text": "a{separator}b"}}\n{{"text": "c"}}')[0][1].text == f"a{separator}b"


@settings(max_examples=depth.examples(50), deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=4), ascii=st.booleans())
def test_any_text_is_read_as_it_was_written(tmp_path_factory, texts, ascii):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=ascii) + "\n" for text in texts)
    assert [record.text for _, record in read(path, lines)] == texts


def test_broken_json_is_told_with_line_and_column(path):
    assert told(path, '{"text": "a"}\n{"text": }\n') == ':2: not JSON: Expecting value at column 10; found {"text": }'


def test_the_column_of_broken_json_counts_leading_spaces(path):
    assert "at column 12;" in told(path, '  {"text": }')


@pytest.mark.parametrize("line", ['{"text": "a\x01b"}', '{"text": "a'])
def test_what_json_says_of_a_place_reads_as_a_sentence(path, line):
    assert "at at" not in told(path, line)


def test_a_missing_field_is_told_with_what_is_near_it(path):
    assert told(path, '{"txet": "a", "id": 1}') == (
        ":1: field 'text' is missing; found 'txet', 'id'; did you mean 'txet'?")


def test_a_missing_field_of_an_empty_object(path):
    assert told(path, "{}") == ":1: field 'text' is missing; found no fields"


def test_a_record_of_many_fields_is_not_listed_in_full(path):
    assert len(told(path, json.dumps({f"field_{i}": i for i in range(1000)}))) < 200


@pytest.mark.parametrize(("line", "expected"), [
    ('{"text": 5}', "field 'text': input should be a valid string; found 5"),
    ('{"text": null}', "field 'text': input should be a valid string; found null"),
    ('{"text": ["a"]}', "field 'text': input should be a valid string; found [\"a\"]"),
])
def test_a_wrong_type_is_told_with_what_was_found(path, line, expected):
    assert told(path, line) == f":1: {expected}"


def test_a_wrong_type_is_told_with_all_right_ones(path):
    assert told(path, '{"input": "a", "label": 0.5}', Labelled) == (
        ":1: field 'label': input should be a valid integer or a valid string; found 0.5")


def test_a_wrong_element_is_told_with_its_place(path):
    assert told(path, '{"labels": [1, true, "a", null]}', ManyLabels) == (
        ":1: field 'labels', element 2: input should be a valid integer or a valid string; found true")


def test_a_number_too_large_for_json_is_told_as_what_it_became(path):
    assert told(path, '{"text": 1e999}').endswith("; found Infinity")


@pytest.mark.parametrize("value", [{(1, 2): 3}, [[]]])
def test_what_cannot_be_written_in_a_message_is_told_too(value):
    with pytest.raises(DataError, match=r"^record 1: field 'text': input should be a valid string; found "):
        validated("record 1", {"text": value}, Text)


def test_a_number_too_long_to_write_is_told_too():
    with pytest.raises(DataError, match=r"; found int that JSON cannot hold$"):
        validated("record 1", {"text": 10**5000}, Text)


def test_fields_without_text_as_names_are_told():
    with pytest.raises(DataError, match=r"field 'text' is missing; found 1"):
        validated("record 1", {1: 2}, Text)


def test_what_python_alone_can_hold_is_told_too():
    with pytest.raises(DataError, match=r"record 1: field 'text': .*; found .*object"):
        validated("record 1", {"text": object()}, Text)


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3", "null", "true"])
def test_a_line_that_is_no_object_is_told_with_a_sketch_of_one(path, line):
    assert told(path, line, Labelled) == f':1: expected a JSON object such as {{"input": …, "label": …}}; found {line}'


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_lacks_are_refused(path, constant):
    assert told(path, f'{{"text": {constant}}}') == f":1: not usable JSON: {constant} is not a JSON value"


def test_a_field_that_occurs_twice_is_refused(path):
    assert told(path, '{"text": "a", "text": "b"}') == ":1: not usable JSON: field 'text' occurs twice"


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_nesting_and_numbers_without_bounds_are_refused(path, line):
    assert told(path, line).startswith(":1: not usable JSON: ")


def test_half_a_surrogate_pair_is_refused(path):
    assert told(path, r'{"text": "\ud800"}').endswith("surrogates not allowed")


def test_what_is_not_utf8_is_told_with_byte_and_column(path):
    assert told(path, b'{"text": "a"}\n{"text": "caf\xe9"}\n') == (
        ":2: not UTF-8: byte 0xe9 at column 14; save the file as UTF-8")


def test_a_byte_order_mark_does_not_shift_the_byte_that_is_told(path):
    assert ":1: not UTF-8: byte 0xe9 at column 14;" in told(path, b'\xef\xbb\xbf{"text": "caf\xe9"}')


def test_files_joined_from_several_with_byte_order_marks_are_read(path):
    line = b'\xef\xbb\xbf{"text": "a"}\n'
    assert [record.text for _, record in read(path, line * 2)] == ["a", "a"]


def test_utf16_is_told_by_name(path):
    assert told(path, '{"text": "a"}'.encode("utf-16")).startswith(":1: UTF-16, not UTF-8; write it in UTF-8 first: iconv -f ")


def test_a_compressed_file_is_told_with_how_to_unpack_it(path):
    assert told(path, gzip.compress(b'{"text": "a"}')) == (
        f":1: compressed by gzip; unpack it first: gzip -dc {path} > train.jsonl")


def test_a_line_has_a_longest_length_that_is_told(path, monkeypatch):
    monkeypatch.setattr("miniformer.data.jsonl.LONGEST_LINE", 2**20)
    assert told(path, '{"text": "a"}\n' + "x" * (2**20 + 1)) == (
        ":2: longer than 1 MiB, the most that a line may have; expected one JSON object in each line")


@pytest.mark.parametrize("check", [check_file, lambda path: list(read_records(path, Text))])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/full"])
def test_a_device_without_an_end_is_refused(device, check):
    with pytest.raises(DataError, match=f"^{device}: a device, which may have no end; expected a file"):
        check(Path(device))


def test_a_pipe_is_read_once_and_checking_takes_nothing_of_it(path):
    os.mkfifo(path)
    check_file(path)
    writer = threading.Thread(target=path.write_text, args=('{"text": "a"}\n',))
    writer.start()
    assert [record.text for _, record in read_records(path, Text)] == ["a"]
    writer.join()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name):
    for check in (check_file, lambda path: list(read_records(path, Text))):
        with pytest.raises(DataError):
            check(Path(name))


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_a_file_without_records_is_told_with_a_sketch_of_one(path, content):
    assert told(path, content) == ': no records; expected one JSON object in each line, such as {"text": …}'


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="a directory; expected a file of JSON lines"):
        list(read_records(tmp_path, Text))


def test_a_missing_file_is_told_with_what_is_near_it(path):
    path.touch()
    missing = path.with_name("trian.jsonl")
    with pytest.raises(DataError) as caught:
        list(read_records(missing, Text))
    assert str(caught.value) == f"{missing}: no such file; did you mean 'train.jsonl'?"


def test_files_are_alike_in_their_names_without_suffixes(path):
    for name in ("train.csv", "train.jsonl", "results.jsonl"):
        path.with_name(name).touch()
    near = {"xyz.jsonl": "", "train.json": "; did you mean 'train.csv' or 'train.jsonl'?",
            "trian.csv": "; did you mean 'train.csv' or 'train.jsonl'?", "result.txt": "; did you mean 'results.jsonl'?"}
    for name, hint in near.items():
        with pytest.raises(DataError) as caught:
            list(read_records(path.with_name(name), Text))
        assert str(caught.value).partition("no such file")[2] == hint


def test_a_link_to_nothing_is_told_with_where_it_leads(tmp_path):
    (tmp_path / "data.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"data.jsonl: a link to gone.jsonl, which is not there$"):
        list(read_records(tmp_path / "data.jsonl", BaseModel))


def test_a_missing_file_in_a_missing_folder_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no such file$"):
        list(read_records(tmp_path / "nowhere" / "train.jsonl", Text))


def test_control_characters_are_escaped_in_messages(path):
    assert "\\x1b[31m" in told(path, '"\x1b[31m"')


def test_long_lines_are_cut_in_messages(path):
    assert len(told(path, '{"text": "' + "a" * 5000)) < 200


def test_long_values_are_cut_in_messages(path):
    assert len(told(path, json.dumps({"text": list(range(5000))}))) < 200


def test_records_before_a_fault_are_read(path):
    path.write_text('{"text": "a"}\nbroken\n')
    assert next(read_records(path, Text))[1] == Text(text="a")


def test_checking_a_file_tells_what_reading_it_would(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check_file(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="a directory"):
        check_file(tmp_path)


def test_checking_a_file_reads_no_record(path):
    path.write_text("not JSON")
    check_file(path)


def test_checking_standard_input_takes_nothing_of_it(path, monkeypatch):
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        check_file(STDIN)
        assert [where for where, _ in read_records("-", Text)] == ["standard input:1", "standard input:2"]
        with pytest.raises(DataError, match=r"^standard input: no records"):
            list(read_records("-", Text))
