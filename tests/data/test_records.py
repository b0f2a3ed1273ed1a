"""Records of a run: what is read, what is held out, and what tells two files apart."""

import json
from hashlib import sha256

import depth
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from miniformer.data.records import Located, hold_out, read
from miniformer.kernel import DataError
from miniformer.kernel.spec import build, resolve
from miniformer.kernel.task import Task

TASK = build(Task, resolve("task", "language-modeling"))


class Text(BaseModel):
    text: str


def located(texts):
    return [Located(f"f:{i}", Text(text=text), sha256(text.encode()).digest(), 0) for i, text in enumerate(texts, start=1)]


def texts_of(items):
    return sorted(item.record.text for item in items)


many_texts = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30).filter(lambda texts: len(set(texts)) > 1)
fractions = st.floats(0.001, 0.999)


@settings(max_examples=depth.examples(50), deadline=None)
@given(many_texts, fractions, st.randoms(use_true_random=False))
def test_what_is_held_out_does_not_hang_on_the_order_of_records(texts, fraction, random):
    shuffled = random.sample(texts, len(texts))
    assert ([texts_of(part) for part in hold_out(located(texts), fraction, "f")]
            == [texts_of(part) for part in hold_out(located(shuffled), fraction, "f")])


@settings(max_examples=depth.examples(50), deadline=None)
@given(many_texts, fractions)
def test_every_record_is_trained_on_or_held_out(texts, fraction):
    train, held = hold_out(located(texts), fraction, "f")
    assert train and held
    assert sorted([*train, *held], key=lambda item: int(item.where[2:])) == located(texts)


@settings(max_examples=depth.examples(50), deadline=None)
@given(many_texts, fractions)
def test_equal_records_are_never_on_both_sides(texts, fraction):
    train, held = hold_out(located(texts), fraction, "f")
    assert not set(texts_of(train)) & set(texts_of(held))


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 5), (0.051, 6), (0.001, 1), (0.999, 99)])
def test_the_part_that_is_held_out_is_the_fraction_rounded_up(fraction, count):
    assert len(hold_out(located(map(str, range(100))), fraction, "f")[1]) == count


def test_more_records_move_few_between_the_sides():
    before = texts_of(hold_out(located(map(str, range(100))), 0.1, "f")[0])
    held = texts_of(hold_out(located(map(str, range(110))), 0.1, "f")[1])
    assert len(set(before) & set(held)) <= 2


def test_one_record_cannot_be_split():
    with pytest.raises(DataError, match=r"f: one record only.*give --val-path"):
        hold_out(located(["a"]), 0.5, "f")


def test_equal_records_cannot_be_split():
    with pytest.raises(DataError, match=r"f: all records are alike.*give --val-path"):
        hold_out(located(["a", "a", "a"]), 0.5, "f")


def test_where_a_line_starts_is_known_in_bytes(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\ufeff" + '{"text": "é"}\n\n \n' + '{"text": "\\u2028 "}\r\n{"text": "c"}', encoding="utf-8")
    records, _ = read(str(path), TASK)
    content = path.read_bytes()
    lines = [content[record.start:].decode("utf-8-sig").split("\n")[0] for record in records]
    assert [json.loads(line)["text"] for line in lines] == [record.record.text for record in records] == ["é", "\u2028 ", "c"]


def test_the_fingerprint_is_of_the_records_and_not_of_how_they_are_written(tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"text": "é"}\n{"text": "b"}\n', encoding="utf-8")
    other.write_text('{"more": 1, "text": "\\u00e9"}\n\n{"text":"b"}', encoding="utf-8")
    (_, first), (_, second) = read(str(one), TASK), read(str(other), TASK)
    assert (first["records"], first["sha256"]) == (second["records"], second["sha256"])


def test_records_are_told_apart_by_their_content(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "a"}\n', encoding="utf-8")
    a, b, again = (record.digest for record in read(str(path), TASK)[0])
    assert a == again != b
