"""A folder with the files that the brief speaks of, and a tokenizer."""

import json

import pytest

WORDS = ("this movie was", "once upon a time", "the temperature is", "i didn't enjoy", "a sample sentence")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: data/train.jsonl, data/val.jsonl, data/test.jsonl, and those for classification."""
    def write(name, rows):
        (tmp_path / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    (tmp_path / "data").mkdir()
    for part, size in (("train", 40), ("val", 6), ("test", 6)):
        write(f"{part}.jsonl", ({"text": f"{WORDS[n % 5]} {n} and {n * n}"} for n in range(size)))
        write(f"classification_{part}.jsonl", ({"input": f"{WORDS[n % 5]} {n}", "label": n % 10} for n in range(size)))
        write(f"regression_{part}.jsonl", ({"input": f"the house is {n} square feet.", "value": float(n)} for n in range(size)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer():
    """A tokenizer, as the brief supplies none."""
    from miniformer.data.tokenizer import Tokenizer

    return Tokenizer.train([f"{words} {n}" for words in WORDS for n in range(20)], 400)
