"""What a user is told of the data before a model is trained on them, and data that are refused since they hold nothing."""

import json

import pytest

from miniformer.data.prepare import prepare_data
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError, resolve

TOKENIZER = Tokenizer.train(["some words to begin with"], 262)


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The notes on files of records, which are called train.jsonl, val.jsonl and test.jsonl."""
    monkeypatch.chdir(tmp_path)

    def of(task, *files, max_len=None):
        names = ["train.jsonl", "val.jsonl", "test.jsonl"][:len(files)]
        for name, records in zip(names, files, strict=True):
            (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        tokenizer = None if isinstance(files[0][0].get("input"), list) else TOKENIZER
        return list(prepare_data(resolve("task", task), *names, tokenizer=tokenizer, max_len=max_len).notes)

    return of


def labelled(count, *labels, text="text number"):
    return [{"input": f"{text} {n}", "label": labels[n % len(labels)]} for n in range(count)]


def texts(count):
    return [{"text": f"text number {n}"} for n in range(count)]


FEW = "train.jsonl: only 2 held-out records, so a figure measured on them says little"


@pytest.mark.parametrize(("task", "record"), [
    ("classification", lambda n, text: {"input": text, "label": n % 2}),
    ("regression", lambda n, text: {"input": text, "value": n}),
    ("token-classification", lambda n, text: {"tokens": [text], "labels": [n % 2]}),
    ("seq2seq", lambda n, text: {"source": text, "target": "t"}),
    ("seq2seq", lambda n, text: {"source": "s", "target": text}),
    ("embedding", lambda n, text: {"anchor": f"a{n}", "positive": text}),
])
def test_how_many_texts_are_cut_is_told_of_a_whole_file(notes, task, record):
    records = [record(n, f"{n}" + "x" * (30 if n < 38 else 1)) for n in range(40)]
    [told] = [note for note in notes(task, records, max_len=12) if " cut " in note]
    assert told.startswith("train.jsonl: 38 of 40 texts were cut to 12 tokens, the longest from ")
    assert not any(" cut " in note for note in notes(task, records, max_len=100))


def test_how_many_series_are_cut_is_told_in_steps(notes):
    records = [{"input": [n] * (9 if n == 1 else 2), "value": n} for n in range(40)]
    told = "1 of 40 series was cut to 4 steps, the longest from 9; a model with a larger max_seq_len reads more of them"
    assert notes("regression", records, max_len=4) == [f"train.jsonl: {told}", FEW]


def test_texts_that_are_packed_are_not_cut(notes):
    assert notes("language-modeling", texts(40), max_len=2) == [FEW]


@pytest.mark.parametrize(("count", "told"), [(1, "only 1 held-out record, so a figure measured on it"),
                                             (6, "only 6 held-out records, so a figure measured on them"), (20, "")])
def test_few_records_to_measure_on_are_told(notes, count, told):
    found = notes("regression", [{"input": [n], "value": n} for n in range(40)],
                  [{"input": [n + 0.5], "value": n} for n in range(count)])
    assert found == ([f"val.jsonl: {told} says little"] if told else [])


def test_few_texts_that_are_long_are_enough_to_measure_on(notes):
    assert notes("language-modeling", texts(40), [{"text": "some other words " * 2000}]) == []


def test_copies_are_told_within_a_file_and_between_files(notes):
    others = [{"text": f"other {n}"} for n in range(30)]
    assert notes("language-modeling", texts(40) + texts(3), texts(30), [*others, *texts(1)]) == [
        "train.jsonl: 3 of 43 records are copies of others",
        "val.jsonl: 30 of 30 held-out records are in the training data too, so figures flatter the model",
        "test.jsonl: 1 of 31 test records are in the training data too, so figures flatter the model"]


def test_measuring_on_the_training_file_is_told(notes, tmp_path):
    notes("language-modeling", texts(40))
    [told] = prepare_data(resolve("task", "language-modeling"), "train.jsonl", "train.jsonl", tokenizer=TOKENIZER).notes
    assert told == "train.jsonl: this is also val_path, so figures are those of records that the model has seen"


@pytest.mark.parametrize("blank", ["", " \n"])
def test_empty_texts_are_told(notes, blank):
    assert notes("language-modeling", [*texts(40), {"text": blank}], texts(25))[0] == "train.jsonl: 1 of 41 texts is empty"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("task", "record"), [
    ("language-modeling", {"text": " "}), ("masked-lm", {"text": ""}), ("prefix-lm", {"text": ""}),
    ("classification", {"input": "", "label": "a"})])
def test_a_file_of_empty_texts_is_refused(notes, task, record, place):
    usual = labelled(40, "a", "b") if "input" in record else texts(40)
    files = [usual, usual[:30], usual[:30]]
    files[place] = [record, {**record, "label": "b"}]
    name, what = [("train", "learn from in the training"), ("val", "measure on in the held-out"),
                  ("test", "measure on in the test")][place]
    with pytest.raises(DataError, match=f"^{name}.jsonl: nothing to {what} records: all texts are empty; expected some text"):
        notes(task, *files)


def test_texts_in_which_nothing_counts_are_refused(notes):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"a": 0, "b": 1, "<mask>": 2}, "a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<mask>"])
    notes("language-modeling", [{"text": "a b"}] * 9, [{"text": "a"}] * 9)
    for task, told in (("language-modeling", "no text has a second token to predict"),
                       ("prefix-lm", "no target has a token to predict")):
        with pytest.raises(DataError, match=f"^val.jsonl: nothing to measure on in the held-out records: {told}"):
            prepare_data(resolve("task", task), "train.jsonl", "val.jsonl", tokenizer=Tokenizer.of(backend))


def test_labels_that_occur_once_or_never_are_told(notes):
    records = [*labelled(40, "a", "b"), *labelled(7, *"cdefghi", text="rare")]
    val = labelled(24, "a", "b", text="other")
    assert notes("classification", records, val) == [
        "train.jsonl: 7 of 9 labels occur once in the training records: 'c', 'd', 'e', 'f', 'g' and 2 more"]
    named = {"name": "classification", "labels": ["a", "b", "z"]}
    assert notes(named, labelled(40, "a", "b"), val) == ["train.jsonl: 1 of 3 labels is in no training record: 'z'"]


@pytest.mark.parametrize(("task", "train", "val", "told"), [
    ("classification", labelled(40, "a", "b"), labelled(20, "a", text="other"), "has the label 'a'"),
    ("multilabel", [{"input": f"{n}", "labels": ["a"] * (n % 2)} for n in range(40)],
     [{"input": f"other {n}", "labels": []} for n in range(20)], "has no label"),
    ("token-classification", [{"tokens": [f"{n}"], "labels": [n % 2]} for n in range(40)],
     [{"tokens": ["x", f"{n}"], "labels": [1, 1]} for n in range(20)], "has the label 1"),
])
def test_records_to_measure_on_that_all_have_one_label_are_told(notes, task, train, val, told):
    assert notes(task, train, val) == [
        f"val.jsonl: every held-out record {told}, so figures on them do not tell whether a model can tell labels apart"]


def test_records_to_measure_on_that_all_have_one_value_are_told(notes):
    values = [{"input": f"{n}", "value": n} for n in range(40)]
    assert notes("regression", values, [{"input": f"other {n}", "value": 3} for n in range(20)]) == [
        "val.jsonl: every held-out record has the value 3, so r2 on them is 0 whatever a model says"]


def test_one_pair_to_measure_on_is_told(notes):
    pairs = [{"anchor": f"{n}", "positive": f"p{n}"} for n in range(40)]
    assert notes("embedding", pairs, [{"anchor": f"other {n}", "positive": "p"} for n in range(20)]) == [
        "val.jsonl: the held-out records have one positive, and no other to tell it from, so their loss is 0 and every other "
        "figure 1 whatever a model says"]


@pytest.mark.parametrize(("one", "two", "told"), [
    ("a", "a ", "they differ in spaces alone"), ("new york", "newyork", "they differ in spaces alone"),
    ("Spam", "spam", "they differ in capital letters alone"),
    ("\u00e9", "e\u0301", "they look alike, and differ in their Unicode form"), ("fine", "\ufb01ne", "they look alike"),
])
def test_labels_that_readers_take_for_one_are_told(notes, one, two, told):
    first, second = sorted([one, two])
    [found] = notes("classification", labelled(40, one, two), labelled(20, one, two, text="other"))
    assert found.startswith(f"train.jsonl: {first!r} and {second!r} are two labels: {told}")
