"""Tokenizers: byte-level BPE trained by the `tokenizers` library, or any `tokenizer.json` of that library."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from miniformer.kernel.errors import DataError, panics_as_errors
from miniformer.kernel.text_file import read_text

from .bpe import FastBPE, byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend
    from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<sep>")
ROLES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>"),
    "bos": ("<bos>", "<s>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "<|bos|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "<|end_of_text|>", "<|endoftext|>", "[EOS]", "<|eos|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""The name of a token that stands for one byte, where bytes stand in for characters without a token (byte fallback)."""
SPARSE = 16
"""The most ids that there may be for each token; a table of so many rows would be nearly empty."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with the roles of its special tokens.

    Every text is encoded in full, as plain text: the library's truncation and padding are switched off, and the name of a
    special token in a document (`<eos>`) is encoded like any other characters.

    Attributes:
        backend: the library's tokenizer, whose settings this object changes; do not share it.
        pad_id, bos_id, eos_id, mask_id: ids of the padding, start, end and mask tokens, found by their usual names. A start or
            end token of another name is known by standing before or after every text. None if the tokenizer has no such
            token, except for `pad_id`, which is then 0.

    Raises:
        DataError: its ids leave so many out that no table of them is to be made.
    """

    def __init__(self, backend: Backend) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        self._counted = self._size = 0
        if self.vocab_size > max(1 << 20, SPARSE * self._counted):
            raise DataError(f"its ids go up to {self.vocab_size - 1:,}, and it has {self._counted:,} tokens; expected ids that "
                            "leave few out")
        ids = {role: next((i for name in names if (i := backend.token_to_id(name)) is not None), None)
               for role, names in ROLES.items()}
        self.pad_id: int = ids["pad"] or 0
        self.bos_id, self.eos_id, self.mask_id = ids["bos"], ids["eos"], ids["mask"]
        before, after = self._around
        if self.bos_id is None and before:
            self.bos_id = before[0]
        if self.eos_id is None and after:
            self.eos_id = after[-1]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE (Sennrich 2016, Radford 2019) of at most `vocab_size` tokens; any text can be encoded."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, processors, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet, texts = pre_tokenizers.ByteLevel.alphabet(), list(texts)
        fewest = len(alphabet) + len(SPECIAL)
        # The trainer makes room for all tokens at once, and ends the process where there is none. A text has fewer pieces
        # than bytes.
        most = fewest + 4 * sum(map(len, texts))
        trainer = trainers.BpeTrainer(vocab_size=min(max(vocab_size, fewest), most), show_progress=False,
                                      special_tokens=list(SPECIAL), initial_alphabet=alphabet)
        backend.train_from_iterator(texts, trainer)
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`, or of a folder that holds one.

        Raises:
            DataError: no such file, or not a tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        path = Path(path)
        path = path / "tokenizer.json" if os.path.isdir(path) else path
        if not os.path.lexists(path):
            raise DataError(f"{path}: no such tokenizer file")
        text = read_text(path, DataError)
        try:
            with panics_as_errors():
                return cls(Backend.from_str(text))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # the library raises bare exceptions
            raise DataError(f"{path}: not a tokenizer of the tokenizers library: {error}") from None

    @classmethod
    def of(cls, tokenizer: Any) -> Tokenizer:
        """A `Tokenizer` from a tokenizer of the `tokenizers` library or a fast one of `transformers`, which is copied first.

        Raises:
            DataError: it is neither.
        """
        from tokenizers import Tokenizer as Backend

        if isinstance(tokenizer, cls):
            return tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Backend):
            raise DataError(f"expected a tokenizer of the tokenizers library, or a fast one of transformers; found "
                            f"{tokenizer!r:.80}")
        return cls(Backend.from_str(backend.to_str()))

    @property
    def vocab_size(self) -> int:
        """The size of a table by id: the highest id and one. Without gaps it is the number of tokens, special ones included."""
        count: int = self.backend.get_vocab_size()
        if count != self._counted:  # at first, and where tokens were added since
            # what stands around texts may have ids of its own
            ids = [*self.backend.get_vocab().values(), *self.backend.encode("").ids]
            self._counted, self._size = count, 1 + max(ids, default=-1)
        return self._size

    @overload
    def encode(self, text: str, return_tensors: None = None) -> list[int]: ...
    @overload
    def encode(self, text: str, return_tensors: Literal["pt"]) -> Tensor: ...

    def encode(self, text: str, return_tensors: Literal["pt"] | None = None) -> Any:
        """Token ids, the start token first; with `return_tensors="pt"` a tensor `[1, T]`.

        If the library's tokenizer adds an end token, it is left out, so that the text can be continued; see `encode_whole`.
        """
        ids = self.encode_whole(text)
        ids = ids[:self._without_end(ids)]
        if return_tensors is None:
            return ids
        import torch

        return torch.tensor([ids])

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a complete text, with the end token if the library's tokenizer adds one (BERT, T5).

        Raises:
            ValueError: the text holds half of a surrogate pair, which UTF-8 cannot represent, or what the tokenizer has no
                token for, not even one for the unknown.
        """
        ids: list[int] = self._encoding(text).ids
        return ids

    def _encoding(self, text: str) -> Encoding:
        try:
            with panics_as_errors():
                return self.backend.encode(text)
        except TypeError:
            text.encode()  # its error names the character and its place
            raise
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"the tokenizer cannot encode {text!r:.60}: {error}") from None

    def byte_counts(self, text: str) -> list[int] | None:
        """How many bytes of a text each token of `encode(text)` stands for; together they are all bytes of the text.

        None where that depends on the token alone, so that `byte_lengths` has it. Where it does not, a tokenizer drops spaces,
        changes letters, or has one token for all that it does not know.
        """
        if self.bytes_are_in_tokens:
            return None
        encoding = self._encoding(text)
        counts = _bytes_between(text, [0 if special else end for (_, end), special in
                                       zip(encoding.offsets, encoding.special_tokens_mask, strict=True)])
        return counts[:self._without_end(encoding.ids)]

    def _without_end(self, ids: Sequence[int]) -> int:
        """How many of the ids stand before an end that the library's tokenizer adds; all of them where nothing precedes it."""
        end = self._around[1]
        has_end = bool(end) and len(ids) > len(end) and list(ids[-len(end):]) == end
        return len(ids) - len(end) if has_end else len(ids)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the library's tokenizer puts before and after a text."""
        for text in ("a", *self.backend.get_vocab()):
            try:
                with panics_as_errors():
                    encoding = self.backend.encode(text)
            except Exception:  # it has no token for this text
                continue
            is_added = encoding.special_tokens_mask
            if 0 in is_added:
                stop = len(is_added) - is_added[::-1].index(0)
                return encoding.ids[:is_added.index(0)], encoding.ids[stop:]
        return self.backend.encode("").ids, []

    @cached_property
    def fast(self) -> FastBPE | None:
        """A faster `encode_whole` for many texts at once; None if this tokenizer has none."""
        return FastBPE.of(self.backend)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def byte_lengths(self) -> list[int]:
        """For each id, how many UTF-8 bytes its token adds to a text; 0 for special tokens, and where there is no token.

        Where a tokenizer drops or changes parts of a text, `byte_counts` is exact, and this is not.
        """
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        vocab = {i: token for token, i in self.backend.get_vocab().items() if i not in special}
        if "ByteLevel" in self._decoding:  # each character of a token is one byte
            texts = ["." * len(token) if byte_alphabet().keys() >= set(token) else token for token in vocab.values()]
        else:  # after a word, as the first token of a text may have no space before it
            word = [] if not self._decoding else next(([i] for i in vocab if self.decode([i]).isalnum()), [])
            start = len(self.decode(word))
            texts = [text[start:] for text in self.backend.decode_batch([[*word, i] for i in vocab])]
        lengths = [0] * self.vocab_size
        for i, text in zip(vocab, texts, strict=True):
            lengths[i] = 1 if i in self.byte_tokens else len(text.encode())
        return lengths

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """The tokens that stand for one byte each of a character that has no token (byte fallback)."""
        if "ByteFallback" not in self._decoding:
            return frozenset()
        return frozenset(i for token, i in self.backend.get_vocab().items() if BYTE.fullmatch(token))

    @cached_property
    def _decoding(self) -> dict[str, dict[str, Any]]:
        """The steps of the library's decoder, each by its type."""
        return {step["type"]: step for step in _steps(self.backend.decoder)}

    @cached_property
    def bytes_are_in_tokens(self) -> bool:
        """Whether every text is exactly the bytes of its tokens: byte-level, and no step before or after changes a text."""
        backend = self.backend
        return ("ByteLevel" in self._decoding and backend.normalizer is None
                and not any(step.get("add_prefix_space") for step in _steps(backend.pre_tokenizer))
                and all(token.special for token in backend.get_added_tokens_decoder().values())
                and all(backend.token_to_id(character) is not None for character in byte_alphabet()))

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        text: str = self.backend.to_str()
        return text


def _steps(part: Any) -> list[dict[str, Any]]:
    """A decoder or pre-tokenizer of the library as plain data, with the steps of a sequence one by one; none for None."""
    if part is None:
        return []
    whole = json.loads(part.__getstate__())
    return list(whole.get("decoders") or whole.get("pretokenizers") or [whole])


def _bytes_between(text: str, ends: Sequence[int]) -> list[int]:
    """The bytes from each end to the next, where `ends` are places of characters in a text; the rest counts to the last."""
    place = None if text.isascii() else list(accumulate((len(character.encode()) for character in text), initial=0))
    counts, done, last = [], 0, 0
    for n, end in enumerate(ends):
        stop = max(done, end if place is None else place[end])
        if stop > done:
            last = n
        counts.append(stop - done)
        done = stop
    if counts:
        counts[last] += (len(text) if place is None else place[-1]) - done
    return counts


class NoTokenizer(Tokenizer):
    """A tokenizer without tokens, for runs whose inputs are features."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models

        super().__init__(Backend(models.WordLevel({})))
