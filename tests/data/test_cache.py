"""The cache: what it gives is what preparing gives, and it gives nothing that could be otherwise."""

import importlib.util
import json
import os
import time

import numpy as np
import pytest
from depth import thorough
from small_tokenizers import unigram

from miniformer.data import cache as module
from miniformer.data.cache import Cache, RecordsOfFile, Settings, key_of
from miniformer.data.packing import Documents
from miniformer.data.prepare import PreparedData, prepare_data
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError, resolve
from miniformer.kernel.spec import build
from miniformer.kernel.task import Split, Task
from miniformer.tasks.language_modeling import TextRecord

LM = resolve("task", "language-modeling")
TOKENIZER = Tokenizer.train(["some words to begin with"], 262)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _small_and_fresh_files_are_kept(monkeypatch):
    monkeypatch.setattr(module, "WORTH", 0)
    monkeypatch.setattr(module, "SETTLED", -1)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "texts.jsonl", [f"text number {i}, né{'é' * i}" for i in range(40)])


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs" / ".cache"


def settings(path, *others, task="language-modeling", val_fraction=0.1, tokenizer=None, vocab_size=300):
    paths = (path, *others, None, None)[:3]
    return Settings(resolve("task", task), paths, val_fraction, tokenizer, vocab_size)


def prepared(given):
    return prepare_data(given.task, *given.paths, val_fraction=given.val_fraction, tokenizer=given.tokenizer,
                   vocab_size=given.vocab_size, max_len=16)


def kept(root, given):
    data = prepared(given)
    Cache(root, given).store(data)
    return data


def told(data):
    return (data.task_spec, data.tokenizer.to_json(), data.fingerprint, data.notes, list(data.splits), data.val is data.train,
            [(list(split.records), list(split.examples)) for split in data.splits.values()])


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
@pytest.mark.parametrize("task", ["language-modeling", "masked-lm", {"name": "masked-lm", "mask_rate": 0.5}])
@pytest.mark.parametrize("others", ["", "val", "val test", "train", "test"])
def test_what_was_kept_is_what_was_prepared(path, root, tmp_path, task, others, tokenizer):
    names = {"val": write(tmp_path / "val.jsonl", ["v", "w"]), "test": write(tmp_path / "test.jsonl", ["t"]), "train": path}
    val = names["val"] if "val" in others else path if "train" in others else None
    given = settings(path, val, names["test"] if "test" in others else None, task=task, tokenizer=tokenizer)
    data, found = kept(root, given), Cache(root, given).load()
    assert told(found) == told(data)
    assert all(isinstance(split.records, RecordsOfFile) for split in found.splits.values()), "read when they are asked for"


def test_the_bytes_of_tokens_are_kept_where_a_tokenizer_does_not_say_them(path, root):
    given = settings(path, tokenizer=unigram())
    assert kept(root, given).val.examples[0].byte_counts is not None
    found, expected = Cache(root, given).load(), prepared(given)
    assert [example.byte_counts for example in found.train.examples] == [
        example.byte_counts for example in expected.train.examples]


def test_large_vocabularies_are_kept(path, root):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({**{f"w{i}": i for i in range(70_000)}, "text": 70_000}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    given = settings(path, tokenizer=Tokenizer(backend))
    assert told(Cache(root, given).load() or kept(root, given)) == told(Cache(root, given).load())
    assert Cache(root, given).load().train.examples[0].tokens[0] == 70_000


def test_records_are_read_one_by_one_in_parts_and_all(path, root):
    given = settings(path, tokenizer=TOKENIZER)
    data, records = kept(root, given), Cache(root, given)
    records = records.load().train.records
    assert [records[3], records[-1]] == [data.train.records[3], data.train.records[-1]]
    assert records[2:9:3] == data.train.records[2:9:3]
    assert list(records) == data.train.records


def test_there_is_nothing_before_something_is_kept(path, root):
    assert Cache(root, settings(path)).load() is None
    assert not root.exists()


# --- when an entry holds

@pytest.mark.parametrize("other", [
    {"val_fraction": 0.2}, {"vocab_size": 301}, {"tokenizer": TOKENIZER}, {"task": "masked-lm"},
    {"tokenizer": Tokenizer.train(["other words to begin with"], 262)}])
def test_other_settings_are_another_entry(path, root, other):
    kept(root, settings(path))
    assert Cache(root, settings(path, **other)).load() is None


@pytest.mark.parametrize("name", ["texts.jsonl", "val.jsonl", "test.jsonl"])
@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes().replace(b"text", b"tent")),
    lambda path: path.write_bytes(path.read_bytes() * 2),
    lambda path: (path.rename(path.with_name("old")), path.write_bytes(path.with_name("old").read_bytes())),
    lambda path: os.utime(path, (1, 1)),
], ids=["same size", "longer", "another inode", "set back"])
def test_a_file_that_has_changed_is_another_entry(path, root, tmp_path, name, change):
    given = settings(path, write(tmp_path / "val.jsonl", ["text", "w"]), write(tmp_path / "test.jsonl", ["text"]))
    kept(root, given)
    assert Cache(root, given).load() is not None
    time.sleep(0.02)
    change(tmp_path / name)
    assert Cache(root, given).load() is None


def test_an_entry_holds_for_any_way_to_write_the_path(path, root, tmp_path, monkeypatch):
    kept(root, settings(path))
    monkeypatch.chdir(tmp_path)
    assert told(Cache(root, settings("texts.jsonl")).load()) == told(prepared(settings(path)))


def test_another_format_is_another_entry(path, root, monkeypatch):
    kept(root, settings(path))
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert Cache(root, settings(path)).load() is None


def test_a_task_whose_source_file_has_changed_is_told_apart(tmp_path):
    source = tmp_path / "acme_task.py"
    source.write_text("from miniformer.tasks.language_modeling import LanguageModeling\nclass Acme(LanguageModeling): pass\n")
    spec = importlib.util.spec_from_file_location("acme_task", source)
    acme = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "acme_task", acme)
        spec.loader.exec_module(acme)
        before = module._sources(acme.Acme())
        assert before == module._sources(acme.Acme())
        source.write_text(source.read_text() + "# changed\n")
        assert module._sources(acme.Acme()) != before


def test_what_cannot_be_told_apart_has_no_entry(path, tmp_path, monkeypatch):
    class Own(Tokenizer):
        pass

    assert key_of(settings(path)) is not None
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for none in (settings("stdlib"), settings("-"), settings(path, "stdlib"), settings(str(fifo)),
                 settings(path, task="classification"), settings(path, tokenizer=Own(TOKENIZER.backend))):
        assert key_of(none) is None
    monkeypatch.setattr(module, "SETTLED", 60)
    assert key_of(settings(path)) is None, "it could change again and look the same"
    monkeypatch.setattr(module, "SETTLED", -1)
    monkeypatch.setattr(module, "WORTH", 10_000)
    assert key_of(settings(path)) is None, "it is read in no time"


def test_a_file_that_changed_while_it_was_read_is_not_kept(path, root, tmp_path):
    given = settings(path)
    cache, data = Cache(root, given), prepared(given)
    write(tmp_path / "texts.jsonl", ["other"])
    cache.store(data)
    assert not root.exists()


def test_a_file_that_changed_since_the_key_was_made_is_not_loaded(path, root, tmp_path):
    given = settings(path)
    kept(root, given)
    cache = Cache(root, given)
    write(tmp_path / "texts.jsonl", ["other"])
    assert cache.load() is None


def test_records_of_a_file_that_has_changed_since_are_refused(path, root, tmp_path):
    given = settings(path)
    kept(root, given)
    found = Cache(root, given).load()
    write(tmp_path / "texts.jsonl", ["other"])
    with pytest.raises(DataError, match=r"texts\.jsonl: changed since"):
        found.train.records[0]


# --- damage

ARRAYS = [f"{split}-{kind}.npy" for split in ("train", "val") for kind in ("tokens", "starts", "lines")]
FILES = ["data.json", "tokenizer.json", *ARRAYS]


def flip(file):
    content = bytearray(file.read_bytes())
    place = content.rindex(b"4") if file.suffix == ".json" else -3
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-5]),
                                  lambda file: file.write_bytes(b""), flip], ids=["gone", "cut", "empty", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_entry_is_said_in_one_line_and_made_anew(path, root, caplog, name, harm):
    given = settings(path)
    data = kept(root, given)
    [folder] = root.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    harm(folder / name)
    assert Cache(root, given).load() is None
    [line] = caplog.messages
    assert str(folder) in line and "\n" not in line
    assert told(kept(root, given)) == told(data) == told(Cache(root, given).load())


def test_a_cache_that_cannot_be_written_is_said_and_no_error(path, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    kept(tmp_path / "file", settings(path))
    assert "not kept" in caplog.text


def test_the_entries_last_used_are_kept(path, root, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    first, second, third = (settings(path, tokenizer=TOKENIZER, val_fraction=fraction) for fraction in (0.1, 0.2, 0.3))
    for given in (first, second):
        kept(root, given)
        time.sleep(0.01)
    assert Cache(root, first).load() is not None
    time.sleep(0.01)
    kept(root, third)
    assert [Cache(root, given).load() is not None for given in (first, second, third)] == [True, False, True]


# --- speed

@thorough
def test_an_entry_of_11_million_tokens_opens_in_under_10_ms(path, root):
    given = settings(path, tokenizer=TOKENIZER)
    starts = np.arange(0, 11_000_001, 220)
    split = Split([TextRecord(text="")] * 50_000, Documents(np.arange(11_000_000, dtype=np.int32) % 262, starts))
    Cache(root, given).store(PreparedData(LM, build(Task, LM), TOKENIZER, split, split, None, {}, {"train": starts[1:]}))
    cache, seconds = Cache(root, given), []
    for _ in range(20):
        before = time.perf_counter()
        found = cache.load()
        row = found.train.examples[49_999]
        seconds.append(time.perf_counter() - before)
        assert row.tokens == [i % 262 for i in range(10_999_780, 11_000_000)]
    assert min(seconds) < 0.010
