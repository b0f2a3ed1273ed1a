"""Fast byte-level BPE: the ids that `tokenizers` gives, for any text, or no fast way at all."""

import json
import sys

import depth
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors, trainers

from miniformer.data import stdlib
from miniformer.data.bpe import BETWEEN, LONG, FastBPE, disputed_characters
from miniformer.data.tokenizer import SPECIAL, Tokenizer

SOURCES = [text for _, text in stdlib.sources()][:40]
TRAINED = Tokenizer.train(SOURCES, 2000)
EVERY = "".join(chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)

pieces = st.sampled_from([*SPECIAL, BETWEEN, *BETWEEN, "'s", "'LL", " '", "don't", "  ", "\n", "\r\n", "\t", "\x00", "\u00a0",
                          "\u2028", "1234", "²", "½", "naïve", "é", "🦜", "👩\u200d👩", "漢字", "١٢", "_", "--", "aaaa"])
texts = st.text() | st.lists(pieces, max_size=12).map("".join) | st.builds(
    lambda text, start, length: text[start:start + length], st.sampled_from(SOURCES), st.integers(0, 5000), st.integers(0, 400))


def gpt2(**options):
    """A tokenizer with the parts of GPT-2's, trained here."""
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(SOURCES[:5], trainer)
    return backend


def around(backend, single, *special):
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(special))
    return backend


def edited(change):
    """A tokenizer whose `tokenizer.json` was changed by hand."""
    data = json.loads(gpt2().to_str())
    change(data)
    return tokenizers.Tokenizer.from_str(json.dumps(data))


TOKENIZERS = {
    "ours": TRAINED, "of few merges": Tokenizer.train(["the cat sat on the mat"], 270),
    "of repeated letters": Tokenizer.train(["a" * n for n in range(1, 40)] + ["aab aab", "baa baa"], 290),
    "GPT-2's": Tokenizer(gpt2()),
    "with an end": Tokenizer(around(gpt2(), "<|endoftext|> $A <|endoftext|>", ("<|endoftext|>", 0))),
}
FAST = {name: FastBPE.of(tokenizer.backend) for name, tokenizer in TOKENIZERS.items()}


def slowly(name, texts):
    return [TOKENIZERS[name].encode_whole(text) for text in texts]


def test_these_tokenizers_have_a_fast_way():
    assert None not in FAST.values()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=depth.examples(150))
@given(found=st.lists(texts, max_size=6))
def test_any_texts_have_the_same_ids(name, found):
    assert FAST[name](found) == slowly(name, found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_much_source_code_has_the_same_ids(name):
    assert FAST[name](SOURCES) == slowly(name, SOURCES)


@pytest.mark.slow
def test_every_character_has_the_same_ids_wherever_it_stands():
    step = 1 if depth.is_thorough() else 8
    lines = [EVERY[i:i + 64] for i in range(0, len(EVERY), 64 * step)]
    crowded = [f"a{character}1 {character}{character}'" for character in EVERY[:3000:step]]
    assert FAST["ours"](lines + crowded) == slowly("ours", lines + crowded)


@pytest.mark.parametrize(("run", "after"), [("a", ""), ("é", "x"), (" ", ""), (" ", "x"), ("\n", "x"), ("ab", "")])
def test_a_text_that_is_one_long_run_is_no_trouble(run, after):
    """Steps that grow with the square of its length would not end."""
    text = run * ((1_000_000 if depth.is_thorough() else 200_000) // len(run)) + after
    [ids] = FAST["ours"]([text])
    assert ids == TRAINED.encode_whole(text)


def test_a_character_that_is_not_of_the_same_class_to_both_libraries_leaves_its_texts_to_tokenizers(monkeypatch):
    fast = FastBPE.of(TRAINED.backend)
    monkeypatch.setattr("miniformer.data.bpe.disputed_characters", lambda characters: set("é") & set(characters))
    seen, slow = [], fast.slow
    monkeypatch.setattr(fast, "slow", lambda text: seen.append(text) or slow(text))
    assert fast(["a", "é", "ü", "aé"]) == slowly("ours", ["a", "é", "ü", "aé"])
    assert seen == ["é", "aé"]
    fast(["bé"])
    assert seen == ["é", "aé", "bé"]


def test_characters_are_disputed_if_one_library_alone_takes_them_for_letters(monkeypatch):
    assert disputed_characters("aé1 \u0378") == set()
    monkeypatch.setattr("miniformer.data.bpe.CLASSES", ((r"[a\p{L}]+", r"[^b]+"),))
    assert disputed_characters("ab1") == {"a"}


def test_a_long_run_of_space_is_left_to_tokenizers(monkeypatch):
    fast = FastBPE.of(TRAINED.backend)
    monkeypatch.setattr(fast, "slow", lambda text: [text.count(" ")])
    assert fast([" " * LONG + "x"]) == [[LONG]]


@pytest.mark.parametrize("backend", [
    tokenizers.Tokenizer(models.WordLevel({"a": 0})), tokenizers.Tokenizer(models.Unigram([("a", 0.0)])), gpt2(dropout=0.5),
    edited(lambda data: data.update(normalizer={"type": "Lowercase"})),
    edited(lambda data: data["pre_tokenizer"].update(add_prefix_space=True)),
    edited(lambda data: data["pre_tokenizer"].update(use_regex=False)),
    edited(lambda data: data.update(pre_tokenizer=None)),
    edited(lambda data: data["model"].update(ignore_merges=True)),
    edited(lambda data: data["added_tokens"][0].update(special=False)),
    edited(lambda data: data["model"]["merges"].reverse()),
    around(gpt2(), "$A $A"), around(gpt2(), "<|endoftext|>", ("<|endoftext|>", 0)),
], ids=["words", "unigram", "dropout", "normalizer", "prefix space", "no pattern", "no cut", "ignores merges", "added word",
        "order of merges", "twice", "nothing"])
def test_another_kind_of_tokenizer_has_no_fast_way(backend):
    assert FastBPE.of(backend) is None


def test_a_token_that_is_not_merged_to_itself_alone_is_seen():
    """'bc' is merged first, so 'abc' never comes of its own merge, 'ab' and 'c'; tiktoken would make it of 'a' and 'bc'."""
    def change(data):
        letters = {token: i for token, i in data["model"]["vocab"].items() if len(token) == 1}
        names = [*letters, "bc", "ab", "abc"]
        data["model"].update(vocab={name: i for i, name in enumerate(names)}, merges=[["b", "c"], ["a", "b"], ["ab", "c"]])
        data["added_tokens"] = []

    assert FastBPE.of(edited(change)) is None
