"""Small tokenizers of the kinds that people bring: WordPiece as BERT's, Unigram as T5's, BPE with byte fallback as Llama's."""

from functools import cache

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from miniformer.data.tokenizer import Tokenizer

TEXTS = ("the cat sat on the mat. The dog ran!", "naïve café 東京 🙂  two  spaces\nnew line", "a b c")


@cache
def word_piece():
    """Lower-case words and their parts (`##ing`), between [CLS] and [SEP]; what it does not know is one token."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return Tokenizer.of(backend)


@cache
def unigram():
    """Pieces with a mark for the space before them, which the first word has too; without a start token."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    return Tokenizer.of(backend)


@cache
def byte_fallback():
    """Few pieces, and a token for each byte of a character that has none."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thecasonm.", "▁t", "▁th", "▁the",
              "\ufffd"]
    backend = tokenizers.Tokenizer(models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "t"), ("▁t", "h"), ("▁th", "e")], unk_token="<unk>",
        byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer.of(backend)


@cache
def byte_level():
    """Our own kind, of which any text is exactly the bytes of its tokens."""
    return Tokenizer.train(TEXTS, 300)


KINDS = (byte_level, word_piece, unigram, byte_fallback)


def with_gaps(end="<eos>", last=30):
    """Letters whose ids leave many out: after the first ones come 20 and the last."""
    ids = {"<pad>": 0, "<mask>": 2, end: 5, "a": 6, "b": 20, "<unk>": 9, "c": last}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<mask>", end, "<unk>"])
    return backend
