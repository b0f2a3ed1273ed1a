"""The figures that a trivial predictor of tokens reaches, to compare a model with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import numpy as np

from miniformer.kernel.task import Example, Split, Tokenizer

AT_ONCE = 4096
"""Examples whose tokens are counted together, since every count costs a pass over the vocabulary."""


def unigram(train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, float]:
    """Loss and bits per byte of predicting tokens by their frequency in training, with one added to each count."""
    train_counts, counts = (occurrences(split.examples, tokenizer.vocab_size, start=1) for split in (train, held_out))
    train_counts += 1  # a token that training never shows must not cost an infinite loss
    nats = -float((counts * np.log(train_counts / train_counts.sum())).sum())
    said = [example.byte_counts for example in held_out.examples]
    if said and None not in said:
        n_bytes = sum(sum(row[1:]) for row in said if row is not None)
    else:
        n_bytes = int((counts * np.array(tokenizer.byte_lengths())).sum())
    n_bytes = max(1, n_bytes)
    return {"loss": nats / max(1, int(counts.sum())), "bits_per_byte": nats / math.log(2) / n_bytes}


def occurrences(examples: Iterable[Example], vocab_size: int, start: int = 0) -> np.ndarray:
    """`[V]`: how often each token occurs in the examples. The first `start` tokens of each example do not count."""
    counts, remaining = np.zeros(vocab_size, dtype=np.int64), iter(examples)
    while rows := [np.asarray(example.tokens, dtype=np.int64)[start:] for example in islice(remaining, AT_ONCE)]:
        counts += np.bincount(np.concatenate(rows), minlength=vocab_size)
    return counts
