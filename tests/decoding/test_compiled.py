"""Static states: a feed whose steps write into tensors that stay. That the texts are right is tested in
tests/inference/test_greedy.py, and of compiled steps in tests/inference/test_compiled.py."""

import pytest
import torch
from plain_step import plain_step

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding import compiled as static
from miniformer.decoding.compiled import StaticFeed
from miniformer.model.transformer import Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=2, max_seq_len=64, causal=True)).eval()


def counting():
    """A step, and the numbers of columns that it was made for."""
    made = []

    def step(run, memory, latest, here, keys, *rest):
        made.append(keys.shape[1])
        return plain_step(run, memory, latest, here, keys, *rest)

    return step, made


@torch.no_grad()
def test_steps_look_at_few_more_columns_than_are_filled(model, monkeypatch):
    monkeypatch.setattr(static, "COLUMNS", 8)
    step, made = counting()
    ids = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0))
    plain, feed = model.feed(ids, 18), StaticFeed(model.feed(ids, 18), step)
    logits, expected = feed(ids), plain(ids)
    for _ in range(17):
        torch.testing.assert_close(logits, expected)
        tokens = expected.argmax(dim=-1, keepdim=True)
        logits, expected = feed(tokens), plain(tokens)
    assert made == [8, 16, 22], "two that are filled by and by, and what the state holds"


@pytest.mark.parametrize(("kept", "left"), [([0, 2], 2), ([1], 3)])
@torch.no_grad()
def test_rows_that_end_keep_their_place_until_columns_are_added(model, monkeypatch, kept, left):
    monkeypatch.setattr(static, "COLUMNS", 4)
    step, made = counting()
    ids = torch.randint(7, (3, 3), generator=torch.Generator().manual_seed(0))
    plain, feed = model.feed(ids[:, :2], 8), StaticFeed(model.feed(ids[:, :2], 8), step)
    for one in (feed, plain):
        one(ids[:, :2])
        one(ids[:, :1])
        one.keep(kept)
    torch.testing.assert_close(feed(ids[kept, :1]), plain(ids[kept, :1]))
    assert made == [4] and len(feed.start) == 3
    for _ in range(4):
        torch.testing.assert_close(feed(ids[kept, :1]), plain(ids[kept, :1]))
    assert made == [4, 8] and len(feed.start) == left
