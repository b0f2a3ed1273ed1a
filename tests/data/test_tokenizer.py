"""Tokenizers: training, round trips, special tokens, bytes, and the ways to get one."""

import json

import depth
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, with_gaps, word_piece
from tokenizers import models, pre_tokenizers, processors

from miniformer.data.tokenizer import NoTokenizer, Tokenizer
from miniformer.kernel.errors import DataError

CORPUS = ["the cat sat on the mat\n", "def f(x):\n    return x + 1\n", "naïve café 🦜🦜\n"] * 20
TRAINED = Tokenizer.train(CORPUS, 300)
any_text = st.text() | st.text(alphabet="the cat\n🦜é \t\r\x00<eos>") | st.sampled_from(CORPUS)


def words(*known):
    """A word-level tokenizer of the library, with a sequence start and end of its own."""
    ids = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *known])}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return backend


@settings(max_examples=depth.examples(200), deadline=None)
@given(any_text)
def test_any_text_comes_back(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@settings(max_examples=depth.examples(20), deadline=None)
@given(st.lists(any_text, min_size=1, max_size=4))
def test_any_text_can_be_trained_on(texts):
    tokenizer = Tokenizer.train(texts, 270)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


@settings(max_examples=depth.examples(200), deadline=None)
@given(any_text)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(text):
    lengths = TRAINED.byte_lengths()
    assert sum(lengths[i] for i in TRAINED.encode(text)) == len(text.encode())


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=depth.examples(30), deadline=None)
@given(any_text)
def test_the_bytes_of_a_text_are_shared_out_among_its_tokens(make, text):
    tokenizer = make()
    ids, counts = tokenizer.encode(text), tokenizer.byte_counts(text)
    if counts is None:  # each token has bytes of its own
        counts = [tokenizer.byte_lengths()[i] for i in ids]
    assert len(counts) == len(ids) and min(counts, default=0) >= 0
    assert sum(counts) == (len(text.encode()) if ids else 0)


def test_a_token_s_bytes_are_those_that_it_adds_to_a_text():
    """Neither the mark of a part of a word nor that of a space is text, and a space before a word is."""
    for make, known in ((KINDS[1], {"##e": 1, "the": 4, "[SEP]": 0}), (KINDS[2], {"▁the": 4, "a": 1, "</s>": 0}),
                        (KINDS[3], {"<0xE2>": 1, "<0x0A>": 1, "▁the": 4, "h": 1, "\ufffd": 3, "<s>": 0})):
        lengths, ids = make().byte_lengths(), make().backend.get_vocab()
        assert {token: lengths[ids[token]] for token in known if token in ids} == {
            token: count for token, count in known.items() if token in ids}
        assert len(known.keys() & ids.keys()) >= 2


def test_a_part_of_a_text_has_the_bytes_up_to_its_end():
    assert word_piece().byte_counts("the  cat.") == [0, 3, 5, 1], "[CLS], the, cat with the spaces before it, and the end"


def test_the_size_of_a_vocabulary_is_its_highest_id_and_one():
    """Ids may leave others out, and what stands around a text may have an id of its own."""
    tokenizer = Tokenizer.of(with_gaps(last=77))
    assert tokenizer.vocab_size == len(tokenizer.byte_lengths()) == 78
    assert [tokenizer.byte_lengths()[i] for i in (3, 6, 19, 20, 77)] == [0, 1, 0, 1, 1]
    backend = with_gaps()
    backend.post_processor = processors.TemplateProcessing("[X] $A", special_tokens=[("[X]", 90)])
    assert Tokenizer.of(backend).vocab_size == 91
    tokenizer.backend.add_special_tokens(["<later>"])
    assert tokenizer.vocab_size > tokenizer.backend.token_to_id("<later>")


def test_ids_that_leave_nearly_all_out_are_refused(tmp_path):
    with_gaps(last=2**21).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer\.json: its ids go up to 2,097,152, and it has 7 tokens; expected ids"):
        Tokenizer.load(tmp_path)


def test_a_byte_order_mark_before_a_tokenizer_is_no_part_of_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TRAINED.to_json(), encoding="utf-8-sig")
    assert Tokenizer.load(tmp_path).to_json() == TRAINED.to_json()


def test_a_start_and_an_end_token_of_any_name_are_known_by_their_place():
    backend = words("cat", "{", "}")
    backend.add_special_tokens(["{", "}"])
    backend.post_processor = processors.TemplateProcessing("{ $A }", special_tokens=[("{", 5), ("}", 6)])
    tokenizer = Tokenizer.of(backend)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2), "usual names come first"
    assert (tokenizer.encode("cat"), tokenizer.encode_whole("cat")) == ([5, 4], [5, 4, 6])
    backend = tokenizers.Tokenizer(models.WordLevel({"cat": 0, "{": 1, "}": 2}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["{", "}"])
    backend.post_processor = processors.TemplateProcessing("{ $A }", special_tokens=[("{", 1), ("}", 2)])
    tokenizer = Tokenizer.of(backend)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert (tokenizer.encode("cat"), tokenizer.encode_whole("cat")) == ([1, 0], [1, 0, 2])


def test_a_text_that_has_no_tokens_for_it_is_refused():
    tokenizer = Tokenizer.of(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="?")))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(ValueError, match="the tokenizer cannot encode 'b': WordLevel error"):
        tokenizer.encode("b")


@pytest.mark.parametrize("word", ["<pad>", "<bos>", "<eos>", "<mask>", "<sep>"])
def test_a_special_token_in_a_text_is_text(word):
    """A document that speaks of <eos> does not end there, and loses nothing."""
    ids = TRAINED.encode(f"a{word}b")
    assert TRAINED.backend.token_to_id(word) not in ids[1:]
    assert TRAINED.decode(ids) == f"a{word}b"


def test_a_special_token_in_a_text_is_text_after_saving(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(TRAINED.to_json(), encoding="utf-8")
    assert Tokenizer.load(path).encode("a<eos>b") == TRAINED.encode("a<eos>b")


def test_an_empty_text_is_its_start():
    assert TRAINED.encode("") == [TRAINED.bos_id]


def test_training_is_deterministic():
    assert Tokenizer.train(CORPUS, 300).to_json() == TRAINED.to_json()


def test_training_merges_what_is_frequent():
    assert len(Tokenizer.train(CORPUS, 400).encode("the cat")) < len(Tokenizer.train(CORPUS, 261).encode("the cat"))


def test_a_vocabulary_is_no_larger_than_asked():
    assert TRAINED.vocab_size == 300


def test_a_vocabulary_holds_all_bytes_and_special_tokens_however_few_are_asked_for():
    assert Tokenizer.train(CORPUS, 1).vocab_size == 256 + 5


def test_special_tokens_come_first():
    assert (TRAINED.pad_id, TRAINED.bos_id, TRAINED.eos_id) == (0, 1, 2)
    assert [TRAINED.backend.id_to_token(i) for i in range(5)] == ["<pad>", "<bos>", "<eos>", "<mask>", "<sep>"]


def test_a_text_starts_with_the_start_token():
    ids = TRAINED.encode("the cat")
    assert ids[0] == TRAINED.bos_id and TRAINED.bos_id not in ids[1:]


def test_special_tokens_are_not_decoded():
    assert TRAINED.decode([TRAINED.bos_id, *TRAINED.encode("cat")[1:], TRAINED.eos_id, TRAINED.pad_id]) == "cat"


def test_a_tensor_can_be_decoded():
    assert TRAINED.decode(torch.tensor(TRAINED.encode("the cat"))) == "the cat"


def test_as_a_tensor_a_text_is_a_batch_of_one():
    ids = TRAINED.encode("the cat", return_tensors="pt")
    assert ids.dtype == torch.long and ids.tolist() == [TRAINED.encode("the cat")]


def test_special_tokens_stand_for_no_bytes():
    assert TRAINED.byte_lengths()[:5] == [0] * 5
    assert len(TRAINED.byte_lengths()) == TRAINED.vocab_size


@pytest.mark.parametrize("name", ["tokenizer.json", "."])
def test_a_tokenizer_is_loaded_from_its_file_or_folder(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text(TRAINED.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / name)
    assert loaded.to_json() == TRAINED.to_json()
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)


def test_a_missing_tokenizer_is_told(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json: no such tokenizer file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "not JSON", "[1]"])
def test_a_file_that_is_no_tokenizer_is_told(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer of the tokenizers library"):
        Tokenizer.load(path)


def test_a_tokenizer_at_which_the_library_panics_is_told(tmp_path):
    data = json.loads(TRAINED.to_json())
    data["post_processor"]["special_tokens"] = {}  # the template still names <bos>
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="not a tokenizer of the tokenizers library: the library stopped at a fault of its own"):
        Tokenizer.load(path)


@pytest.mark.parametrize(("content", "told"), [
    (TRAINED.to_json().encode("utf-16"), "UTF-16, not UTF-8"), (b"\x1f\x8b\x08\x00", "compressed by gzip"),
    (b'{"version": "\xe9"}', "not UTF-8: byte 0xe9 at byte 14")])
def test_a_tokenizer_that_is_no_text_is_told_by_what_it_is(tmp_path, content, told):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=told):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_in_a_device_or_a_link_to_itself_is_told_by_that(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, told in ((tmp_path / "loop", "Too many levels of symbolic links"), ("/dev/zero", "a device, which may have")):
        with pytest.raises(DataError, match=told):
            Tokenizer.load(path)


def test_a_tokenizer_of_the_library_is_taken_with_its_special_tokens():
    tokenizer = Tokenizer.of(words("cat", "sat"))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.encode("cat sat") == [1, 4, 5]


def test_a_text_that_does_not_go_on_has_the_end_token_that_the_tokenizer_adds():
    backend = words("cat")
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                           special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    assert Tokenizer.of(backend).encode("cat") == [1, 4]
    assert Tokenizer.of(backend).encode_whole("cat") == [1, 4, 2]
    assert TRAINED.encode_whole("the cat") == TRAINED.encode("the cat"), "where it adds none"


def test_a_fast_tokenizer_of_transformers_is_taken_by_its_backend():
    class Fast:
        backend_tokenizer = words("cat")

    assert Tokenizer.of(Fast()).encode("cat") == [1, 4]


def test_our_own_tokenizer_is_taken_as_it_is():
    assert Tokenizer.of(TRAINED) is TRAINED


def test_something_else_is_no_tokenizer():
    with pytest.raises(DataError, match="expected a tokenizer of the tokenizers library"):
        Tokenizer.of("gpt2")


def test_a_tokenizer_without_special_tokens_has_no_start_and_no_end():
    tokenizer = Tokenizer.of(tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, None, None)


def test_truncation_and_padding_that_a_tokenizer_was_saved_with_are_off():
    """Files made for inference have them; a document would lose its end, or gain padding that counts as text."""
    backend = words("a")
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    assert Tokenizer.of(backend).encode("a a a a") == [1, 4, 4, 4, 4]


def test_an_end_token_that_a_tokenizer_adds_is_left_out():
    """A prompt would be over before it is gone on with."""
    backend = words("a")
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                           special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    assert Tokenizer.of(backend).encode("a a") == [1, 4, 4]


def test_a_tokenizer_that_is_given_is_not_changed():
    backend = words("a")
    backend.enable_truncation(3)
    Tokenizer.of(backend).encode("a a a a")
    assert backend.truncation["max_length"] == 3


def test_words_count_their_bytes():
    assert Tokenizer.of(words("cat", "é")).byte_lengths()[4:] == [3, 2]


def test_the_mask_token_is_found_by_its_usual_names():
    assert TRAINED.mask_id == 3
    assert Tokenizer.of(tokenizers.Tokenizer(models.WordLevel({"[PAD]": 0, "[MASK]": 1}))).mask_id == 1
    assert Tokenizer.of(tokenizers.Tokenizer(models.WordLevel({"a": 0}))).mask_id is None


def test_where_a_tokenizer_is_not_needed_there_is_one_without_tokens():
    assert (NoTokenizer().vocab_size, NoTokenizer().byte_lengths()) == (0, [])


def test_half_a_surrogate_pair_is_refused():
    tokenizer = Tokenizer.train(["some words"], 261)
    for encode in (tokenizer.encode, tokenizer.encode_whole):
        with pytest.raises(ValueError, match=r"'\\udce9' in position 3: surrogates not allowed"):
            encode("caf\udce9")


def test_a_vocabulary_beyond_all_texts_takes_no_room():
    """The library makes room for all of it at once, and ends the process where there is none."""
    texts = ["a rose is a rose"]
    assert Tokenizer.train(texts, 2**31 - 1).vocab_size == Tokenizer.train(texts, 1000).vocab_size < 300
