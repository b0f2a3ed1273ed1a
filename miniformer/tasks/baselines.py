"""What trivial predictors of tokens reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from miniformer.kernel.task import Example, Split, Tokenizer


def unigram(train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, float]:
    """Loss and bits per byte of predicting tokens by how often they are to be predicted in training, plus one."""

    def counts(examples: Sequence[Example]) -> np.ndarray:
        """How often each token is to be predicted: everywhere but at a text's start."""
        return sum((np.bincount(e.tokens[1:], minlength=tokenizer.vocab_size) for e in examples),
                   np.zeros(tokenizer.vocab_size, dtype=np.int64))

    known, wanted = counts(train.examples) + 1, counts(held_out.examples)
    nats = -float((wanted * np.log(known / known.sum())).sum())
    n_bytes = max(1, int((wanted * np.array(tokenizer.byte_lengths())).sum()))
    return {"loss": nats / max(1, int(wanted.sum())), "bits_per_byte": nats / math.log(2) / n_bytes}
