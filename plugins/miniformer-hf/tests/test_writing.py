"""An imported model writes what transformers writes: with beams the same texts, by drawing with the same frequencies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MAKERS, ids_of, saved
from miniformer_hf import import_model

from miniformer.decoding.beam_search import Beams, search
from miniformer.decoding.loop import Finish
from miniformer.decoding.sampling import Sampling, Text

DRAWS = 20_000


@torch.no_grad()
@pytest.mark.parametrize("early_stop", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("maker", ["gpt2", "llama", "t5"])
def test_beams_find_the_same_texts(tmp_path: Path, maker: str, length_penalty: float, early_stop: Any) -> None:
    theirs = MAKERS[maker](**({} if maker == "t5" else {"tie_word_embeddings": False})).double()
    model, texts = import_model(saved(theirs, tmp_path)), set()
    for row in ids_of(6, 5):
        start = 1 if model.has_source else len(row)
        greedy = theirs.generate(row[None], do_sample=False, max_new_tokens=4, eos_token_id=None)
        end = int(greedy[0, -1])  # a token that is likely, so that some texts end and others do not
        expected = theirs.generate(row[None], num_beams=3, num_return_sequences=3, do_sample=False, max_new_tokens=8,
                                   length_penalty=length_penalty, early_stopping=early_stop, eos_token_id=end)

        def ending(text: Text, end: int = end) -> Finish | None:
            return "eos" if text.new[-1] == end else None

        [beams] = search(model.feed(row[None], 8), [8], Beams(3, length_penalty, early_stop), Sampling(), ending)
        assert [text.new for text in beams] == [_to_the_end(text[start:].tolist(), end) for text in expected]
        texts |= {tuple(text.new) for text in beams}
    assert len(texts) > 6


def _to_the_end(text: list[int], end: int) -> list[int]:
    """The text up to its end token, without what fills its row after that."""
    return text[:text.index(end) + 1] if end in text else text


@pytest.mark.parametrize(("maker", "settings"), [
    ("gpt2", {"temperature": 0.7, "top_k": 4, "top_p": 1.0}),
    ("llama", {"temperature": 1.5, "top_k": 12, "top_p": 0.6}),
    ("t5", {"temperature": 1.0, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.5}),
])
def test_draws_have_the_same_frequencies(tmp_path: Path, maker: str, settings: dict[str, Any]) -> None:
    """Of two tokens in a row, by a chi-square test of two samples, five standard deviations wide."""
    theirs, counts = MAKERS[maker](), []
    model, row = import_model(saved(theirs, tmp_path)), ids_of(1, 5)
    drawn = theirs.generate(row, do_sample=True, num_return_sequences=DRAWS, max_new_tokens=2, eos_token_id=None, **settings)
    counts.append(Counter(map(tuple, drawn[:, -2:].tolist())))
    drawn = model.generate(row.expand(DRAWS, -1), max_new_tokens=2, eos_id=-1, seed=0, **settings)
    counts.append(Counter(map(tuple, drawn[:, -2:].tolist())))
    pairs = [pair for pair in counts[0] | counts[1] if counts[0][pair] + counts[1][pair] >= 10]
    assert len(pairs) > 3
    assert sum(counts[0][pair] for pair in pairs) > 0.99 * DRAWS, "nearly all draws are compared"
    statistic = sum((counts[0][p] - counts[1][p]) ** 2 / (counts[0][p] + counts[1][p]) for p in pairs)
    assert statistic < len(pairs) + 5 * (2 * len(pairs)) ** 0.5
