"""`prefix-lm`: write the rest of a text from its first part, with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from miniformer.kernel.task import Batch, Example, Split, Tokenizer

from .baselines import unigram
from .collate import bytes_of, nothing_to_write, start_of, with_source, written
from .language_modeling import LanguageModeling, TextRecord


class PrefixLanguageModeling(LanguageModeling):
    """Write the rest of a document from its first part, with an encoder and a decoder (Raffel 2020, arXiv:1910.10683).

    A document is cut into pieces of at most `max_seq_len` tokens. The first part of each, at least one token, is the source;
    the rest is the target, which the encoder never sees. Loss, perplexity and bits per byte are those of targets alone.
    `language-modeling` becomes this task where the model is an encoder-decoder.

    Args:
        part: the part of a piece that is the source, rounded down to whole tokens.
    """

    causal: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    has_source: ClassVar[bool] = True
    with_source: ClassVar[str | None] = None

    def __init__(self, *, part: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> None:
        self.part = part

    def encode(self, record: TextRecord, tokenizer: Tokenizer) -> Example:
        return self.examples(record, tokenizer, None)[0]

    def examples(self, record: TextRecord, tokenizer: Tokenizer, limit: int | None) -> Sequence[Example]:
        if limit == 1:
            raise ValueError("max_seq_len 1 leaves nothing to write after a source; expected at least 2")
        whole = super().encode(record, tokenizer)
        ids, counts = list(whole.tokens), whole.byte_counts
        size = limit or len(ids) or 1
        pieces = [ids[i:i + size] for i in range(0, len(ids), size)]
        sources = [piece[:max(1, int(self.part * len(piece)))] for piece in pieces]
        examples = []
        for i, (piece, source) in enumerate(zip(pieces, sources, strict=True)):
            if i and len(piece) == 1:  # a last piece of one token is all source, and no example
                continue
            start = i * size + len(source)
            examples.append(Example([start_of(tokenizer), *piece[len(source):]], source=source, byte_counts=(
                None if counts is None else [0, *counts[start:i * size + len(piece)]])))
        return examples

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        """The example of a text to continue: all of it is the source."""
        return Example([start_of(tokenizer)], source=tokenizer.encode(record.text))

    def cut(self, example: Example, length: int) -> Example:
        """Keep the last `length` tokens of the source, which the target continues, and the first ones of the target."""
        assert example.source is not None
        counts = example.byte_counts
        return Example(example.tokens[:length + 1], source=example.source[-length:],
                       byte_counts=None if counts is None else counts[:length + 1])

    def unmeasurable(self, examples: Sequence[Example]) -> str | None:
        return nothing_to_write(examples)

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = with_source(examples)
        # a target of its start token alone has nothing to predict, and a column all the same
        counts = [None if (row := example.byte_counts) is None else row[1:] if len(row) > 1 else [0] for example in examples]
        batch.targets = {**batch.targets, **bytes_of(counts)}
        return batch

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        return {"unigram": unigram(train, held_out, tokenizer)}

    def answer(self, model: Any, batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The continuation of each source, written greedily."""
        return [{"text": text} for text in written(model, batch, tokenizer)]
