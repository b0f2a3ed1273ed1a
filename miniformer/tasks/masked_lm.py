"""`masked-lm`: predict hidden tokens of a text, with an encoder (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Tokenizer

from .baselines import occurrences
from .collate import packed
from .language_modeling import LanguageModeling, TextRecord
from .losses import full_precision
from .metrics import Perplexity

MASKED, REPLACED = 0.8, 0.1
"""Shares of the tokens to predict that are shown as the mask token and as a random token; the rest is shown as it is."""


class MaskedLanguageModeling(LanguageModeling):
    """Predict the tokens of a text that were hidden, with an encoder. Texts share rows, and never attend to each other.

    A training row gets a new mask in each epoch, drawn from seed, epoch and place alone, so a run can be repeated. A held-out
    row always has the same mask, so measurements can be compared.

    Args:
        mask_rate: the part of a row's tokens to predict, at least one token.
        mask_id: the token that hides one; learnt from the tokenizer.
        special: tokens that are never hidden and never shown in place of a hidden one; learnt from the tokenizer.
        n_tokens: size of the vocabulary; learnt from the tokenizer.
    """

    causal: ClassVar[bool] = False
    with_source: ClassVar[str | None] = None

    def __init__(self, *, mask_rate: Annotated[float, Field(gt=0, le=1)] = 0.15, mask_id: int | None = None,
                 special: tuple[int, ...] = (), n_tokens: int = 0) -> None:
        self.mask_rate, self.mask_id = mask_rate, mask_id
        self.ordinary = torch.tensor(sorted(set(range(n_tokens)) - set(special)), dtype=torch.long)
        self.is_ordinary = torch.zeros(n_tokens + 1, dtype=torch.bool).index_fill(0, self.ordinary, True)

    def fit_tokenizer(self, tokenizer: Tokenizer) -> Mapping[str, Any]:
        if tokenizer.mask_id is None:
            raise ValueError("the tokenizer has no mask token, such as <mask> or [MASK]")
        special = [i for i, n_bytes in enumerate(tokenizer.byte_lengths()) if n_bytes == 0]
        return {"mask_id": tokenizer.mask_id, "special": special, "n_tokens": tokenizer.vocab_size}

    def unmeasurable(self, examples: Sequence[Example]) -> str | None:
        hidden = (self._may_hide(torch.as_tensor(example.tokens)).any() for example in examples if len(example.tokens))
        return None if any(hidden) else "no text has a token that may be hidden"

    def encode(self, record: TextRecord, tokenizer: Tokenizer) -> Example:
        ids = tokenizer.encode(record.text)  # nothing is measured by the byte
        return Example(ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id])

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokens, layout, _ = packed(examples)
        chosen = torch.zeros(layout.shape, dtype=torch.bool)
        shown = tokens.clone()
        for row, example in enumerate(examples):
            chosen[row], shown[row] = self._hidden(tokens[row], layout.real[row], example.draw)
        return Batch(shown, layout, {"chosen": chosen, "token": tokens})

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        """Cross-entropy, in nats; the weight is the number of tokens to predict."""
        chosen_BT = batch.targets["chosen"]
        nats = head.cross_entropy(hidden[chosen_BT][None], batch.targets["token"][chosen_BT][None])
        return LossTerm(nats, chosen_BT.sum())

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        return {"perplexity": Perplexity(), "accuracy": MulticlassAccuracy(tokenizer.vocab_size, average="micro")}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        chosen_BT = batch.targets["chosen"]
        metrics["perplexity"].update(loss.sum, loss.weight)
        if chosen_BT.any():  # in empty texts nothing is hidden, and the metric fails on no tokens
            metrics["accuracy"].update(head(hidden, chosen_BT).argmax(dim=-1), batch.targets["token"][chosen_BT])

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """Predict every token of the held-out texts by its frequency in training."""
        train_counts, counts = (occurrences(split.examples, tokenizer.vocab_size)[self.ordinary.numpy()]
                                for split in (train, held_out))
        nats = -float((counts * np.log((train_counts + 1) / (train_counts + 1).sum())).sum())
        total = max(1, int(counts.sum()))
        return {"unigram": {"loss": nats / total, "perplexity": float(np.exp(nats / total)),
                            "accuracy": float(counts[train_counts.argmax()]) / total}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """For the hidden tokens of each row: their number, how many are predicted rightly, and their summed loss in nats."""
        chosen_BT, right_BT = batch.targets["chosen"], batch.targets["token"]
        scores_NV = full_precision(head(hidden, chosen_BT))
        nats_BT = right_BT.new_zeros(right_BT.shape, dtype=scores_NV.dtype)
        nats_BT[chosen_BT] = F.cross_entropy(scores_NV, right_BT[chosen_BT], reduction="none")
        hits_BT = chosen_BT.clone()
        hits_BT[chosen_BT] = scores_NV.argmax(dim=-1) == right_BT[chosen_BT]
        return [{"nats": nats, "tokens": tokens, "right": right} for nats, tokens, right in zip(
            nats_BT.sum(dim=1).tolist(), chosen_BT.sum(dim=1).tolist(), hits_BT.sum(dim=1).tolist(), strict=True)]

    def _hidden(self, tokens_T: Tensor, real_T: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """The tokens of a row to predict, `[T]` bool, and the ids shown to the model, `[T]`. Padding does not change either."""
        if self.mask_id is None:
            raise ValueError("masked-lm: the options mask_id, special and n_tokens come from a tokenizer; see fit_tokenizer")
        # the row itself is in the seed, so that equal draws hide different places in different rows
        generator = torch.Generator().manual_seed(zlib.crc32(tokens_T[real_T].numpy().tobytes(), draw))
        places_N = self._may_hide(tokens_T).logical_and(real_T).nonzero()[:, 0]
        count = min(len(places_N), max(1, round(self.mask_rate * len(places_N))))
        places_K = places_N[torch.randperm(len(places_N), generator=generator)[:count]]
        chance_K = torch.rand(count, generator=generator)
        random_K = self.ordinary[torch.randint(max(1, len(self.ordinary)), (count,), generator=generator)]
        shown_K = torch.where(chance_K < MASKED, self.mask_id,
                              torch.where(chance_K < MASKED + REPLACED, random_K, tokens_T[places_K]))
        chosen_T = torch.zeros_like(real_T).index_fill(0, places_K, True)
        return chosen_T, tokens_T.index_copy(0, places_K, shown_K)

    def _may_hide(self, tokens_T: Tensor) -> Tensor:
        """Which tokens may be hidden, `[T]` bool."""
        # ids beyond the vocabulary read its last entry, which is False: they are never hidden
        return self.is_ordinary[tokens_T.clamp(max=len(self.is_ordinary) - 1)]
