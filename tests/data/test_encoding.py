"""Encoding ahead: of every task the examples that it gives of each record alone, and its errors with their lines."""

from functools import cache

import depth
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from miniformer.data import encoding, stdlib
from miniformer.data.bpe import FastBPE
from miniformer.data.encoding import examples_of
from miniformer.data.records import Located
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import build, resolve
from miniformer.kernel.task import Example, Task
from miniformer.tasks.language_modeling import LanguageModeling, TextRecord

OURS = Tokenizer.train(["def f(x):\n    return x\n", "the cat sat on the mat"] * 20, 300)
BACKEND = tokenizers.Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1, "[SEP]": 2, "[CLS]": 3}, unk_token="[UNK]"))
BACKEND.pre_tokenizer = pre_tokenizers.Whitespace()
BACKEND.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 2)])
WORDS = Tokenizer(BACKEND)
SOURCES = [(path, text) for path, text in stdlib.sources() if path.startswith(("asyncio/", "unittest/"))]
TASKS = [entry.name for entry in current_registry().entries("task")]
odd_texts = st.text() | st.sampled_from(["<eos>", "", " ", "the the", "a" * 3000, "\n\n  x", "don't", "🦜é"])


def located(records):
    return [Located(f"f:{number}", record, b"", 0) for number, record in enumerate(records, start=1)]


@cache
def embedded(name):
    """Some embedded records of a task, and the task that has learnt from them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "sources", lambda: iter(SOURCES))
        records = [record for _, record in build(Task, resolve("task", name)).stdlib()]
    records = records[::max(1, len(records) // 50)]
    return records, build(Task, resolve("task", {"name": name, **build(Task, resolve("task", name)).fit(records)}))


def told(example):
    return [value.tolist() if hasattr(value, "tolist") else value
            for value in (example.tokens, example.target, example.documents, example.following, example.source, example.draw,
                          example.byte_counts)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(encoding, "AT_ONCE", 2000)


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("tokenizer", [OURS, WORDS], ids=["ours", "words"])
@pytest.mark.parametrize("name", TASKS)
def test_every_tasks_examples_are_those_of_each_record_alone(name, tokenizer, limit):
    records, task = embedded(name)
    alone = [example for record in records for example in task.examples(record, tokenizer, limit)]
    assert list(map(told, examples_of(task, located(records), tokenizer, limit))) == list(map(told, alone))


@settings(max_examples=depth.examples(100))
@given(st.lists(odd_texts, max_size=8), st.sampled_from([OURS, WORDS]))
def test_any_texts_are_encoded_as_alone(texts, tokenizer):
    task, records = LanguageModeling(), [TextRecord(text=text) for text in texts]
    assert list(examples_of(task, located(records), tokenizer, None)) == [task.encode(record, tokenizer) for record in records]


class Shouting(LanguageModeling):
    """A third party's task that encodes something else than its texts, changes ids in place, and keeps its tokenizer."""

    def encode(self, record, tokenizer):
        ids = tokenizer.encode(record.text.upper())
        more = tokenizer.encode(record.text)
        more.append(7)
        return Example([*ids, *more, *tokenizer.encode(record.text), tokenizer.vocab_size])


def test_a_task_may_encode_something_else_than_its_texts():
    records = [TextRecord(text=text) for text in ("the cat", "the cat", "def f(x)")]
    alone = [Shouting().encode(record, OURS) for record in records]
    assert list(examples_of(Shouting(), located(records), OURS, None)) == alone


class Refusing(LanguageModeling):
    def texts(self, record):
        if record.text == "bad texts":
            raise ValueError("no texts")
        return super().texts(record)

    def encode(self, record, tokenizer):
        if record.text == "bad":
            raise ValueError("this one is bad")
        return super().encode(record, tokenizer)


def test_a_record_that_is_refused_is_told_with_its_line():
    found = examples_of(Refusing(), located([TextRecord(text=text) for text in ("a", "bad", "bad texts")]), OURS, None)
    next(found)
    with pytest.raises(DataError, match="f:2: this one is bad"):
        next(found)


def test_a_text_that_cannot_be_encoded_is_told_with_its_line():
    strict = Tokenizer.of(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="?")))
    found = examples_of(LanguageModeling(), located([TextRecord(text=text) for text in ("a", "b")]), strict, None)
    with pytest.raises(DataError, match="f:2: the tokenizer cannot encode 'b'"):
        list(found)


def test_a_record_whose_texts_are_refused_is_encoded_all_the_same():
    found = list(examples_of(Refusing(), located([TextRecord(text="bad texts")]), OURS, None))
    assert found == [LanguageModeling().encode(TextRecord(text="bad texts"), OURS)]


class Reversed(Tokenizer):
    def encode_whole(self, text):
        return super().encode_whole(text)[::-1]


def test_a_tokenizer_with_a_way_of_its_own_keeps_it():
    reverse, records = Reversed(OURS.backend), [TextRecord(text="the cat")]
    assert list(examples_of(LanguageModeling(), located(records), reverse, None)) == [
        LanguageModeling().encode(records[0], reverse)]


@pytest.mark.parametrize("tokenizer", [OURS, WORDS], ids=["ours", "words"])
def test_texts_are_encoded_ahead_and_not_one_by_one(tokenizer, monkeypatch):
    records = [TextRecord(text=f"the {n}") for n in range(500)]
    alone, encode = [], Tokenizer.encode_whole
    monkeypatch.setattr(Tokenizer, "encode_whole", lambda self, text: alone.append(text) or encode(self, text))
    assert len(list(examples_of(LanguageModeling(), located(records), tokenizer, None))) == 500
    assert len(alone) < 20, "no more than a sample"


@pytest.mark.parametrize(("count", "fast"), [(500, True), (3, False)])
def test_the_fast_way_is_taken_where_there_is_much_to_encode(count, fast, monkeypatch):
    records = [TextRecord(text=f"the {n}") for n in range(count)]
    used = []
    monkeypatch.setattr(FastBPE, "__call__", lambda self, texts: used.append(texts) or list(map(OURS.encode_whole, texts)))
    assert len(list(examples_of(LanguageModeling(), located(records), OURS, None))) == count
    assert bool(used) is fast


def test_the_fast_way_is_not_taken_if_a_text_of_a_sample_comes_out_otherwise(monkeypatch):
    records = [TextRecord(text=f"the {n}") for n in range(500)]
    monkeypatch.setattr(FastBPE, "__call__", lambda self, texts: [[7] for _ in texts])
    found = list(examples_of(LanguageModeling(), located(records), OURS, None))
    assert found == [LanguageModeling().encode(record, OURS) for record in records]
