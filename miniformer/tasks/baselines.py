"""What trivial predictors of tokens reach."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import numpy as np

from miniformer.kernel.task import Example, Split, Tokenizer

AT_ONCE = 4096
"""Examples whose tokens are counted together: to count those of each by itself costs a pass over the vocabulary."""


def unigram(train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, float]:
    """Loss and bits per byte of predicting tokens by their frequency in training, with one added to each count."""

    known, wanted = (occurrences(split.examples, tokenizer.vocab_size, start=1) for split in (train, held_out))
    known += 1
    nats = -float((wanted * np.log(known / known.sum())).sum())
    n_bytes = max(1, int((wanted * np.array(tokenizer.byte_lengths())).sum()))
    return {"loss": nats / max(1, int(wanted.sum())), "bits_per_byte": nats / math.log(2) / n_bytes}


def occurrences(examples: Iterable[Example], vocab_size: int, start: int = 0) -> np.ndarray:
    """How often each token `[V]` is in the examples, from place `start` of each on."""
    found, left = np.zeros(vocab_size, dtype=np.int64), iter(examples)
    while some := [np.asarray(example.tokens, dtype=np.int64)[start:] for example in islice(left, AT_ONCE)]:
        found += np.bincount(np.concatenate(some), minlength=vocab_size)
    return found
