"""Text from tokens: pieces add up to the text, never split a character, and end at a stop string wherever tokens cut it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_fallback
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from writing_models import BYTES

from miniformer.data.tokenizer import Tokenizer
from miniformer.inference.text import TextWriter
from miniformer.kernel import UserError

texts = st.text(st.sampled_from("ab é東🙂,\n"), max_size=60)


def pieces(tokens, tokenizer=BYTES, **given):
    """The pieces, as far as a stop string lets them come, and the writer."""
    writer, found = TextWriter(tokenizer, **given), []
    for token in tokens:
        found.append(writer.push(token))
        if writer.stopped:
            return found, writer
    return [*found, writer.end()], writer


@given(texts)
def test_pieces_add_up_to_the_text_and_hold_whole_characters(text):
    found, writer = pieces(BYTES.encode(text)[1:])
    assert "".join(found) == writer.text == text
    assert not any("\ufffd" in piece for piece in found)


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=80))
def test_any_tokens_give_the_text_that_they_decode_to(tokens):
    assert pieces(tokens)[1].text == BYTES.decode(tokens)


bytes_and_pieces = st.sampled_from([*(3 + byte for byte in b"\xe2\x82\xac\xf0\nA"), 259, 260, 1, 2, 273, 300])


@pytest.mark.parametrize("make", KINDS)
@given(st.data())
def test_of_any_tokenizer_pieces_add_up_to_what_the_tokens_decode_to(make, data):
    """Bytes that are no character, tokens without text, and ids that no token has among them."""
    ids = st.integers(0, make().vocab_size + 1)
    tokens = data.draw(st.lists(ids | bytes_and_pieces if make is byte_fallback else ids, max_size=50))
    found, writer = pieces(tokens, make())
    assert "".join(found) == writer.text == make().decode(tokens)


@given(st.lists(st.text(st.sampled_from("ab é東🙂,\n\ufffd"), max_size=9), max_size=3).map(" ".join),
       st.lists(st.text(st.sampled_from("ab é東🙂,\n"), min_size=1, max_size=3), max_size=2))
def test_with_byte_fallback_a_text_comes_whole_and_ends_at_a_stop_string(text, stop):
    tokens = byte_fallback().encode(text)[1:]
    found, writer = pieces(tokens, byte_fallback(), stop=stop)
    decoded = byte_fallback().decode(tokens)
    ends = [(decoded.find(one) + len(one), decoded.find(one)) for one in stop if one in decoded]
    assert "".join(found) == writer.text == decoded[:min(ends)[1] if ends else None]
    assert decoded == text


def test_a_stop_string_of_bytes_ends_a_text_at_once():
    """Though bytes that follow could change what was made of them."""
    found, writer = pieces([*byte_fallback().encode("the\n")[1:], *byte_fallback().encode("the")[1:]], byte_fallback(),
                           stop=["\n"])
    assert (found, writer.text, writer.stopped) == (["the", ""], "the", True)


def test_bytes_of_a_text_complete_no_character_of_the_prompt():
    before, tokens = byte_fallback().encode("the 🙂"), byte_fallback().encode("🙂 the")[2:]
    assert pieces(tokens, byte_fallback(), before=before)[1].text == "🙂 the"


def test_a_piece_comes_as_soon_as_no_token_can_change_it():
    tokens = BYTES.encode("a🙂b")[1:]
    found, _ = pieces(tokens)
    assert found[0] == "a" and "🙂" in found and found[-2:] == ["b", ""]


def test_what_is_no_text_is_told_once_it_is_certain():
    broken = BYTES.backend.token_to_id("ð")  # stands for byte 0xf0, the first of four
    found, _ = pieces([broken, broken, *BYTES.encode("a")[1:]])
    assert found == ["", "\ufffd", "\ufffda", ""]


@given(texts, st.lists(st.text(st.sampled_from("ab é東🙂,\n"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_text_ends_before_the_first_stop_string(text, stop):
    found, writer = pieces(BYTES.encode(text)[1:], stop=stop)
    ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    assert "".join(found) == writer.text == text[:min(ends)[1] if ends else None], "before the first that is complete"
    assert writer.stopped == bool(ends)


def test_what_may_start_a_stop_string_is_held_until_it_is_known():
    a, b, c = (BYTES.encode(letter)[1] for letter in "abc")
    assert pieces([a, b, a], stop=["abc"])[0] == ["", "", "ab", "a"]
    found, writer = pieces([a, a, b, c, a], stop=["abc"])
    assert (found, writer.text, writer.stopped) == (["", "a", "", ""], "a", True)


@pytest.fixture
def words():
    """A tokenizer that joins words with spaces, so that the first token of a text is written differently."""
    backend = Backend(models.WordPiece({"[UNK]": 0, "new": 1, "york": 2, "##er": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend)


def test_a_text_that_goes_on_starts_with_the_space_before_it(words):
    assert pieces([2, 3], words, before=[1])[0] == [" york", "er", ""]
    assert pieces([2, 3], words)[0] == ["york", "er", ""]
    assert pieces([3], words, before=[1, 2])[0] == ["er", ""]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop: an empty string is in every text"):
        TextWriter(BYTES, stop=["x", ""])
