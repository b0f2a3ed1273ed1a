"""Tokenizers: byte-level BPE trained by the `tokenizers` library, or any `tokenizer.json` of that library."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from miniformer.kernel.errors import DataError

from .bpe import FastBPE

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<eos>", "<mask>", "<sep>")
ROLES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>"),
    "bos": ("<bos>", "<s>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}


class Tokenizer:
    """A `tokenizers.Tokenizer` with the roles of its special tokens.

    Every text is encoded in full, as plain text: the library's truncation and padding are switched off, and the name of a
    special token in a document (`<eos>`) is encoded like any other characters.

    Attributes:
        backend: the library's tokenizer, whose settings this object changes; do not share it.
        pad_id, bos_id, eos_id, mask_id: ids of the padding, start, end and mask tokens. None if the tokenizer has no such
            token, except for `pad_id`, which is then 0.
    """

    def __init__(self, backend: Backend) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        ids = {role: next((i for name in names if (i := backend.token_to_id(name)) is not None), None)
               for role, names in ROLES.items()}
        self.pad_id: int = ids["pad"] or 0
        self.bos_id, self.eos_id, self.mask_id = ids["bos"], ids["eos"], ids["mask"]

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
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer file")
        try:
            return cls(Backend.from_file(str(path)))
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
        """Number of tokens, special ones included."""
        size: int = self.backend.get_vocab_size()
        return size

    @overload
    def encode(self, text: str, return_tensors: None = None) -> list[int]: ...
    @overload
    def encode(self, text: str, return_tensors: Literal["pt"]) -> Tensor: ...

    def encode(self, text: str, return_tensors: Literal["pt"] | None = None) -> Any:
        """Token ids, the start token first; with `return_tensors="pt"` a tensor `[1, T]`.

        If the library's tokenizer adds an end token, it is left out, so that the text can be continued; see `encode_whole`.
        """
        ids = self.encode_whole(text)
        if len(ids) > 1 and ids[-1] == self.eos_id:
            ids.pop()
        if return_tensors is None:
            return ids
        import torch

        return torch.tensor([ids])

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a complete text, with the end token if the library's tokenizer adds one (BERT, T5).

        Raises:
            ValueError: the text holds half of a surrogate pair, which UTF-8 cannot represent.
        """
        try:
            ids: list[int] = self.backend.encode(text).ids
        except TypeError:
            text.encode()  # its error names the character and its place
            raise
        return ids

    @cached_property
    def fast(self) -> FastBPE | None:
        """A faster `encode_whole` for many texts at once; None if this tokenizer has none."""
        return FastBPE.of(self.backend)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def byte_lengths(self) -> list[int]:
        """The number of UTF-8 bytes that each token stands for; 0 for special tokens."""
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        byte_level = "ByteLevel" in str(type(self.backend.decoder))  # there, each character of a token is one byte
        tokens = ((i, (self.backend.id_to_token(i) or "") if byte_level else self.backend.decode([i]))
                  for i in range(self.vocab_size))
        return [0 if i in special else len(t) if byte_level else len(t.encode()) for i, t in tokens]

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        text: str = self.backend.to_str()
        return text


class NoTokenizer(Tokenizer):
    """A tokenizer without tokens, for runs whose inputs are features."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models

        super().__init__(Backend(models.WordLevel({})))
