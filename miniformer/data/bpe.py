"""Byte-level BPE by `tiktoken`, which is several times as fast as `tokenizers`; used only where both give equal ids.

Both merge the leftmost pair of lowest rank. But `tokenizers` considers only the pairs in its list of merges, and `tiktoken`
considers any two tokens whose concatenation is a token. They agree if every token, encoded alone, comes out as itself: then
its own merges are the only way to build it, and no pair outside the list can form it. `_ranks` checks this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiktoken import Encoding
    from tokenizers import Tokenizer as Backend

PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pieces into which `ByteLevel` of `tokenizers` cuts a text before it merges: GPT-2's pattern (Radford 2019)."""
CLASSES = ((r"\p{L}+", r"\P{L}+"), (r"\p{N}+", r"\P{N}+"), (r"\s+", r"\S+"))
"""The classes of characters that the pattern refers to, each with its complement."""
LONG = 10_000
SPACE = re.compile(rf"\s{{{LONG}}}")
"""A run of `LONG` spaces. Much longer runs overflow the stack of tiktoken's regular expressions."""
BETWEEN = "\x1f\x00\x1e"
"""The separator of joined texts. No proper suffix of it is a prefix of it, so it can only match where it was put."""


class FastBPE:
    """Encodes many texts at once, to the ids that a tokenizer of `tokenizers` gives.

    The texts are joined with `BETWEEN`, a special token that occurs in none of them, because tiktoken cuts at special tokens
    before all else. So it is called once for all texts, and holds up no other thread between them.

    Args:
        slow: encodes one text with `tokenizers`; used for the few texts that tiktoken may cut differently.
        encoding: tiktoken's encoding, with `BETWEEN` as its last token.
        before, after: ids that are put before and after the ids of every text.
    """

    def __init__(self, slow: Callable[[str], list[int]], encoding: Encoding, before: list[int], after: list[int]) -> None:
        self.slow, self.encoding, self.before, self.after = slow, encoding, before, after
        self._seen: set[str] = set()
        self._odd: set[str] = set()

    @classmethod
    def of(cls, backend: Backend) -> FastBPE | None:
        """The fast encoder of a tokenizer; None if tiktoken could give other ids than the tokenizer."""
        data = json.loads(backend.to_str())
        around, ranks = _around(data["post_processor"]), _ranks(backend, data)
        if around is None or ranks is None:
            return None
        from tiktoken import Encoding

        encoding = Encoding("miniformer", pat_str=PIECES, mergeable_ranks=ranks,
                            special_tokens={BETWEEN: max(ranks.values()) + 1})
        return cls(lambda text: backend.encode(text).ids, encoding, *around)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        plain = self._plain(texts)
        between = self.encoding.max_token_value
        joined = self.encoding.encode_to_numpy(BETWEEN.join(text for text, fast in zip(texts, plain) if fast),
                                               allowed_special={BETWEEN}, disallowed_special=())
        stops = iter([*(joined == between).nonzero()[0].tolist(), len(joined)])
        ids, stop, rows = joined.tolist(), -1, []
        for text, fast in zip(texts, plain):
            if fast:  # its ids lie between the separator before it and the next one
                start, stop = stop + 1, next(stops)
            rows.append([*self.before, *ids[start:stop], *self.after] if fast else self.slow(text))
        return rows

    def _plain(self, texts: list[str]) -> list[bool]:
        """For each text, whether tiktoken is sure to cut it as `tokenizers` does."""
        everything = "".join(texts)
        # both libraries agree on ASCII; beyond it, their versions of Unicode may differ
        odd = set() if everything.isascii() else self._disputed(set(everything))
        separator_occurs = BETWEEN in everything
        return [not ((separator_occurs and BETWEEN in text) or (odd and not odd.isdisjoint(text))
                     or (len(text) > LONG and SPACE.search(text))) for text in texts]

    def _disputed(self, characters: set[str]) -> set[str]:
        """A set that holds those of the characters, seen now or before, that the two libraries classify differently."""
        if new := characters - self._seen:
            self._odd |= disputed_characters("".join(new))
            self._seen |= new
        return self._odd


def disputed_characters(characters: str) -> set[str]:
    """The characters that are a letter, a number or a space to one library and not to the other."""
    from tokenizers import Regex, pre_tokenizers

    disputed: set[str] = set()
    for inside, outside in CLASSES:
        ours = bytes(_bytes_of(inside).encode_ordinary(characters)).decode()
        theirs = pre_tokenizers.Split(Regex(outside), "removed").pre_tokenize_str(characters)
        disputed |= set(ours) ^ set("".join(piece for piece, _ in theirs))
    return disputed


@cache
def _bytes_of(pattern: str) -> Encoding:
    """An encoding whose ids are the bytes of the parts of a text that match the pattern; the rest of the text is dropped."""
    from tiktoken import Encoding

    return Encoding("bytes", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={})


def _ranks(backend: Backend, data: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The ids of all bytes and merged tokens, in the order of merging; None if tiktoken cannot reproduce the tokenizer."""
    model, cut = data["model"], data["pre_tokenizer"] or {}
    plain = (data["normalizer"] is None and cut.get("type") == "ByteLevel" and cut["use_regex"] and not cut["add_prefix_space"]
             and model["type"] == "BPE" and all(token["special"] for token in data["added_tokens"])
             and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                                      "byte_fallback", "ignore_merges")))
    if not plain:
        return None
    byte_of, ids = byte_alphabet(), model["vocab"]
    if not byte_of.keys() <= ids.keys():
        return None
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    order = dict.fromkeys(byte_of, -1)
    for place, (left, right) in enumerate(pairs):
        token = left + right
        if token in order or order.get(left, place) >= place or order.get(right, place) >= place:
            return None
        if [piece.id for piece in backend.model.tokenize(token)] != [ids[token]]:  # the condition of the module's docstring
            return None
        order[token] = place
    merged = [ids[left + right] for left, right in pairs]
    # tiktoken merges by id, `tokenizers` by place in the list: the two orders must be one
    if any(later <= earlier for earlier, later in pairwise(merged)):
        return None
    return {bytes(byte_of[character] for character in token): ids[token] for token in order}


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a token stands for: printable Latin-1 itself, the rest from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unprintable = (byte for byte in range(256) if byte not in printable)
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(unprintable)}}


def _around(post: Mapping[str, Any] | None) -> tuple[list[int], list[int]] | None:
    """The ids that a post-processor puts before and after a text; None if it does anything else."""
    if post is None or post["type"] == "ByteLevel":
        return [], []
    if post["type"] == "Sequence":
        steps = [around for step in post["processors"] if (around := _around(step)) != ([], [])]
        return ([], []) if not steps else steps[0] if len(steps) == 1 else None
    if post["type"] != "TemplateProcessing":
        return None
    places = [place for place, piece in enumerate(post["single"]) if "Sequence" in piece]
    if len(places) != 1:
        return None
    special_tokens = post["special_tokens"]
    before, after = ([i for piece in part for i in special_tokens[piece["SpecialToken"]["id"]]["ids"]]
                     for part in (post["single"][:places[0]], post["single"][places[0] + 1:]))
    return before, after
