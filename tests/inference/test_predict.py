"""Predictions of records: in order, as the task makes them one by one, however many there are."""

import itertools

import pytest
import torch
from task_models import model_for, predictions_of

from miniformer.data.packing import PackedRows
from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.inference.load import Trained
from miniformer.inference.predict import CHUNK, predict
from miniformer.kernel import DataError
from miniformer.tasks.classification import Classification, LabelledRecord
from miniformer.tasks.language_modeling import LanguageModeling, TextRecord
from miniformer.tasks.regression import Regression

TOKENIZER = Tokenizer.train(["some words"], 261)


def trained(task, tokenizer=TOKENIZER, **fields):
    return Trained(model_for(task, tokenizer.vocab_size or 1, **fields), tokenizer, task)


CLASSES = trained(Classification(labels=("a", "b", "c")))
TEXTS = [{"input": "x" * (n * 7 % 23) + "y"} for n in range(40)]


def alone(one, record):
    example = one.task.question(record, one.tokenizer)
    [found] = predictions_of(one.model, one.task, one.task.collate([one.task.cut(example, 64)]))
    return found


def close(found, expected):
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["probabilities"] for row in found] == [pytest.approx(row["probabilities"], abs=2e-6) for row in expected]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_predictions_are_those_of_each_record_alone_in_order(batch_size):
    expected = [alone(CLASSES, LabelledRecord(label="a", **record)) for record in TEXTS]
    close(list(predict(CLASSES, TEXTS, batch_size=batch_size)), expected)


def test_labels_are_not_needed_and_not_looked_at():
    close(list(predict(CLASSES, [{**record, "label": 9.5, "more": None} for record in TEXTS])), list(predict(CLASSES, TEXTS)))


def test_records_may_be_records():
    close(list(predict(CLASSES, [LabelledRecord(label="unknown", **record) for record in TEXTS])),
          list(predict(CLASSES, TEXTS)))


def test_no_more_records_are_held_than_a_chunk():
    taken = itertools.count()
    records = ({"input": "x"} for _ in iter(lambda: next(taken), None))  # without end
    found = predict(CLASSES, records)
    next(found)
    assert next(taken) <= CHUNK + 1
    assert len(list(itertools.islice(found, CHUNK))) == CHUNK


def test_none_are_none():
    assert list(predict(CLASSES, [])) == []


def test_a_longer_text_is_cut():
    [long], [cut] = (list(predict(CLASSES, [{"input": "x" * n}])) for n in (500, 63))
    assert long == cut


@pytest.mark.parametrize(("record", "told"), [
    ({"inputs": "x"}, "record 2: field 'input' is missing; found 'inputs'; did you mean 'inputs'"),
    ({"input": 5}, "record 2: field 'input': expected a text, a list of numbers"),
    ("text", "record 2: expected an object with 'input'; found 'text'"),
    ({"input": [1.0]}, "record 2: field 'input': a list of numbers; expected a text"),
])
def test_a_record_that_is_wrong_is_told_with_its_number(record, told):
    with pytest.raises(DataError, match=told):
        list(predict(CLASSES, [{"input": "x"}, record]))


def test_a_text_that_fills_many_rows_is_predicted_whole():
    lm = trained(LanguageModeling(), max_seq_len=8)
    texts = ["a", "xyz" * 30, "some words", "y" * 7]
    found = list(predict(lm, [{"text": text} for text in texts], batch_size=2))
    for text, row in zip(texts, found, strict=True):
        example = lm.task.encode(TextRecord(text=text), lm.tokenizer)
        rows = PackedRows([example], 8)
        parts = [predictions_of(lm.model, lm.task, lm.task.collate([rows[i]]))[0] for i in range(len(rows))]
        assert row["nats"] == pytest.approx(sum(part["nats"] for part in parts), abs=1e-9)
        assert row["tokens"] == len(example.tokens) - 1, "every token but the first is predicted once"


def test_a_text_of_no_tokens_is_told():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    endless = Tokenizer.of(Backend(models.WordLevel({"a": 0})))
    with pytest.raises(DataError, match="record 1: nothing to predict from: no tokens"):
        list(predict(trained(LanguageModeling(), endless), [{"text": ""}]))


def test_series_are_predicted_without_a_tokenizer():
    task = Regression(mean=10.0, std=2.0, features=((0.0, 1.0), (5.0, 2.0)))
    series = trained(task, NoTokenizer())
    records = [[[1, 2], [3, 4]], [[0, 9]], [[1, 2], [3, 4], [5, 6]]]
    found = list(predict(series, [{"input": value} for value in records]))
    for value, row in zip(records, found, strict=True):
        inputs = torch.tensor([[[a, (b - 5) / 2] for a, b in value]], dtype=torch.float64)
        with torch.no_grad():
            expected = float(series.model(inputs)[0].mean(dim=0)[0]) * 2 + 10
        assert row["value"] == pytest.approx(expected, abs=1e-5)


def test_how_many_texts_were_cut_is_logged_once_at_the_end(monkeypatch, caplog):
    monkeypatch.setattr("miniformer.inference.predict.CHUNK", 2)
    limit = CLASSES.model.config.max_seq_len
    list(predict(CLASSES, [{"input": "x" * (2 * limit if n < 4 else 1)} for n in range(5)]))
    longest = len(TOKENIZER.encode("x" * 2 * limit))
    assert caplog.messages == [f"4 of 5 texts were cut to {limit} tokens, the longest from {longest}; a model with a larger "
                               "max_seq_len reads more of them"]
