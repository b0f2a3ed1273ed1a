"""From files to examples: what is learnt of which records, and whose fault an error is."""

import json

import pytest

from miniformer.data.prepare import prepare_data, token_counts
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError, resolve
from miniformer.kernel.task import Example

TOKENIZER = Tokenizer.train(["some words to begin with"], 262)
LM, LABELS = resolve("task", "language-modeling"), resolve("task", "classification")


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "texts.jsonl", [{"text": f"text number {i}"} for i in range(40)])


@pytest.fixture
def labelled(tmp_path):
    return write(tmp_path / "labelled.jsonl", [{"input": f"text number {i}", "label": "ab"[i % 2]} for i in range(40)])


def test_a_training_file_alone_is_split(texts):
    data = prepare_data(LM, texts, val_fraction=0.1, tokenizer=TOKENIZER)
    assert (len(data.train.records), len(data.val.records), data.test) == (36, 4, None)


def test_records_and_examples_are_in_the_same_order(texts):
    data = prepare_data(LM, texts, tokenizer=TOKENIZER)
    assert [TOKENIZER.decode(example.tokens) for example in data.train.examples] == [r.text for r in data.train.records]


def test_given_files_are_taken_whole(texts, tmp_path):
    val = write(tmp_path / "val.jsonl", [{"text": "v"}, {"text": "text number 1"}])
    test = write(tmp_path / "test.jsonl", [{"text": "t"}])
    data = prepare_data(LM, texts, val, test, tokenizer=TOKENIZER)
    assert (len(data.train.records), len(data.val.records), len(data.test.records)) == (40, 2, 1)
    assert data.test.records[0].text == "t"


def test_a_tokenizer_is_not_trained_on_what_is_held_out(tmp_path):
    path = write(tmp_path / "all.jsonl", [{"text": f"{chr(97 + i)}{chr(98 + i)} " * 20} for i in range(20)])
    data = prepare_data(LM, path, val_fraction=0.5, vocab_size=290)
    parts = [[record.text for record in part.records] for part in (data.train, data.val)]
    assert data.tokenizer.to_json() == Tokenizer.train(parts[0], 290).to_json()
    assert data.tokenizer.to_json() != Tokenizer.train(parts[0] + parts[1], 290).to_json()


def test_a_tokenizer_is_not_trained_on_the_file_to_measure_on(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "aaaa bbbb " * 50}] * 3)
    val = write(tmp_path / "val.jsonl", [{"text": "zyxw zyxw " * 500}])
    tokenizer = prepare_data(LM, train, val, vocab_size=300).tokenizer
    assert len(tokenizer.encode("aaaa")) == 2
    assert len(tokenizer.encode("zyxw")) == 1 + 4, "nothing of it was learnt"


def test_the_part_of_much_text_that_a_tokenizer_is_trained_on_hangs_on_content_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("miniformer.data.prepare.TOKENIZER_BYTES", 100)
    records = [{"text": f"{chr(97 + i % 26)}{chr(97 + i % 25)} " * 20} for i in range(60)]
    one = write(tmp_path / "one.jsonl", records)
    other = write(tmp_path / "other.jsonl", records[::-1])
    tokenizers = [prepare_data(LM, path, vocab_size=300).tokenizer for path in (one, other)]
    assert tokenizers[0].to_json() == tokenizers[1].to_json()


def test_a_given_tokenizer_is_used(texts):
    assert prepare_data(LM, texts, tokenizer=TOKENIZER).tokenizer is TOKENIZER


def test_labels_are_learnt_and_saved_in_the_spec(labelled):
    data = prepare_data(LABELS, labelled, tokenizer=TOKENIZER)
    assert data.task_spec.options == {"labels": ["a", "b"], "features": []}
    assert data.task.labels == ("a", "b")


def test_labels_that_the_spec_names_are_kept(labelled):
    spec = resolve("task", {"name": "classification", "labels": ["b", "c", "a"]})
    assert prepare_data(spec, labelled, tokenizer=TOKENIZER).task.labels == ("b", "c", "a")


def test_a_label_that_training_lacks_is_told_with_its_line(labelled, tmp_path):
    val = write(tmp_path / "val.jsonl", [{"input": "x", "label": "a"}, {"input": "x", "label": "bb"}])
    with pytest.raises(DataError) as caught:
        prepare_data(LABELS, labelled, val, tokenizer=TOKENIZER)
    assert str(caught.value) == (f"{val}:2: label 'bb' is not one of the 2 in the training data; did you mean 'b'?")


def test_one_label_only_is_told_with_the_file(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"input": f"x{i}", "label": "a"} for i in range(4)])
    with pytest.raises(DataError, match=r"train\.jsonl: every record has the label 'a'"):
        prepare_data(LABELS, train, tokenizer=TOKENIZER)


def test_labels_that_are_written_alike_are_told_with_the_file(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"input": f"x{i}", "label": [1, "1"][i % 2]} for i in range(40)])
    with pytest.raises(DataError, match=r"train\.jsonl: labels: 1 and '1' are written alike"):
        prepare_data(LABELS, train, tokenizer=TOKENIZER)


def test_a_record_that_the_task_refuses_is_told_with_its_line(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    startless = Tokenizer.of(Backend(models.WordLevel({"a": 0})))
    train = write(tmp_path / "train.jsonl", [{"input": "a", "label": 0}, {"input": "", "label": 1}])
    with pytest.raises(DataError, match=r"train\.jsonl:2: field 'input' has no tokens"):
        prepare_data(LABELS, train, train, tokenizer=startless)


def test_examples_that_get_a_row_each_are_cut(labelled):
    whole = prepare_data(LABELS, labelled, tokenizer=TOKENIZER)
    cut = prepare_data(LABELS, labelled, tokenizer=TOKENIZER, max_len=5)
    assert [e.tokens for e in cut.train.examples] == [e.tokens[:5] for e in whole.train.examples]
    assert [e.target for e in cut.train.examples] == [e.target for e in whole.train.examples]


def test_examples_that_are_packed_are_not_cut(texts):
    assert (list(prepare_data(LM, texts, tokenizer=TOKENIZER, max_len=5).train.examples)
            == list(prepare_data(LM, texts, tokenizer=TOKENIZER).train.examples))


def test_the_fingerprint_tells_file_count_and_content(texts):
    found = prepare_data(LM, texts, tokenizer=TOKENIZER).fingerprint
    assert set(found) == {"train"}
    assert (found["train"]["source"], found["train"]["records"]) == (texts, 40)
    assert found == prepare_data(LM, texts, tokenizer=TOKENIZER).fingerprint


def test_the_fingerprint_changes_with_the_content(texts, tmp_path):
    val = write(tmp_path / "val.jsonl", [{"text": "a"}])
    before = prepare_data(LM, texts, val, tokenizer=TOKENIZER).fingerprint
    write(tmp_path / "val.jsonl", [{"text": "b"}])
    after = prepare_data(LM, texts, val, tokenizer=TOKENIZER).fingerprint
    assert before["train"] == after["train"]
    assert before["val"]["sha256"] != after["val"]["sha256"]


def test_standard_input_is_read_once_and_called_so(texts, tmp_path, monkeypatch):
    with open(texts) as file:
        monkeypatch.setattr("sys.stdin", file)
        found = prepare_data(LM, "-", tokenizer=TOKENIZER)
    assert found.fingerprint["train"] == {**prepare_data(LM, texts, tokenizer=TOKENIZER).fingerprint["train"],
                                          "source": "standard input"}
    with open(write(tmp_path / "one.jsonl", [{"text": "a"}])) as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(DataError, match=r"^standard input: one record only"):
            prepare_data(LM, "-", tokenizer=TOKENIZER)


def test_the_fingerprint_covers_the_test_file(texts, tmp_path):
    test = write(tmp_path / "test.jsonl", [{"text": "a"}])
    assert prepare_data(LM, texts, None, test, tokenizer=TOKENIZER).fingerprint["test"]["records"] == 1


def test_tokens_are_counted():
    assert token_counts([Example([1, 2]), Example([3])]) == {"examples": 2, "tokens": 3}
    assert token_counts([Example([1, 2], source=[3, 4, 5])]) == {"examples": 1, "tokens": 5}
