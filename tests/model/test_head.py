import math

import pytest
import torch
from hypothesis import given
from torch import nn

from miniformer.contracts.kit.drawing import layouts
from miniformer.kernel import Head, Layout, SpecError, build
from miniformer.model.head import (
    ClassificationHead,
    EmbeddingHead,
    LanguageModelHead,
    RegressionHead,
    TokenClassificationHead,
)

POOLED = [ClassificationHead, RegressionHead, EmbeddingHead]


@pytest.mark.parametrize("cls", [LanguageModelHead, TokenClassificationHead, *POOLED])
def test_a_selection_gives_the_chosen_positions_row_by_row(cls):
    head, x = cls(4, 3), torch.randn(2, 3, 4)
    select = torch.tensor([[False, True, True], [True, False, False]])
    chosen = [head(x)[0, 1], head(x)[0, 2], head(x)[1, 0]]
    torch.testing.assert_close(head(x, select), torch.stack(chosen))


def test_a_selection_of_nothing_is_empty():
    assert LanguageModelHead(4, 3)(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).shape == (0, 3)


def test_the_classification_head_has_a_bias_and_the_language_model_head_has_none():
    assert ClassificationHead(4, 3).out.bias is not None
    assert LanguageModelHead(4, 3).out.bias is None


def test_a_tied_head_shares_the_table():
    head, table = LanguageModelHead(4, 3), nn.Parameter(torch.randn(3, 4))
    assert head.tie(table)
    assert head.out.weight is table


@pytest.mark.parametrize(("head", "table"), [
    (LanguageModelHead(4, 3, tied=False), (3, 4)),
    (LanguageModelHead(4, 3), (5, 4)),
    (ClassificationHead(4, 3), (3, 4)),
])
def test_a_head_that_cannot_or_would_not_share_keeps_its_own(head, table):
    own, table = head.out.weight, nn.Parameter(torch.randn(table))
    assert not head.tie(table)
    assert head.out.weight is own


@given(layouts(max_rows=3))
def test_pool_cls_reads_the_first_token(layout):
    head, x = ClassificationHead(4, 3).double(), torch.randn(*layout.shape, 4, dtype=torch.float64)
    expected = [head.out(x[b, row.index(True)]) for b, row in enumerate(layout.real.tolist())]
    torch.testing.assert_close(head.summary(x, layout), torch.stack(expected), rtol=0, atol=1e-12)


@given(layouts(max_rows=3))
def test_pool_last_reads_the_last_token(layout):
    head, x = ClassificationHead(4, 3, pool="last").double(), torch.randn(*layout.shape, 4, dtype=torch.float64)
    expected = [head.out(x[b, len(row) - 1 - row[::-1].index(True)]) for b, row in enumerate(layout.real.tolist())]
    torch.testing.assert_close(head.summary(x, layout), torch.stack(expected), rtol=0, atol=1e-12)


@given(layouts(max_rows=3))
def test_pool_mean_reads_every_token_but_padding(layout):
    head, x = ClassificationHead(4, 3, pool="mean").double(), torch.randn(*layout.shape, 4, dtype=torch.float64)
    expected = [head.out(sum(x[b, t] for t in range(len(row)) if row[t]) / sum(row))
                for b, row in enumerate(layout.real.tolist())]
    torch.testing.assert_close(head.summary(x, layout), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
@pytest.mark.parametrize("cls", POOLED)
@pytest.mark.parametrize("junk", [1e9, float("nan")])
def test_a_summary_is_blind_to_what_stands_in_the_padding(cls, pool, junk):
    head, x, layout = cls(4, 3, pool=pool), torch.randn(2, 3, 4), Layout.from_lengths([2, 3])
    nn.init.normal_(head.out.weight)
    other = torch.where(layout.real[..., None], x, junk)
    assert torch.equal(head.summary(x, layout), head.summary(other, layout))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_scale_is_a_factor_of_the_scores_before_a_soft_cap(softcap):
    plain, scaled = LanguageModelHead(4, 5), LanguageModelHead(4, 5, scale=0.3, softcap=softcap)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    scores = 0.3 * plain(x)
    torch.testing.assert_close(scaled(x), scores if softcap is None else softcap * torch.tanh(scores / softcap))


def test_a_soft_cap_bounds_scores_and_keeps_their_order():
    torch.manual_seed(1)
    plain, capped = LanguageModelHead(4, 5), LanguageModelHead(4, 5, softcap=2.0)
    capped.load_state_dict(plain.state_dict())
    scores, x = plain(x := torch.randn(3, 4) * 9), x
    expected = [[2.0 * math.tanh(score / 2.0) for score in row] for row in scores.tolist()]
    torch.testing.assert_close(capped(x), torch.tensor(expected))
    assert float(capped(x).detach().abs().max()) <= 2.0 < float(scores.detach().abs().max())


@pytest.mark.parametrize("softcap", [0, -1])
def test_a_soft_cap_is_positive(softcap):
    with pytest.raises(SpecError, match="softcap"):
        build(Head, {"name": "lm", "softcap": softcap}, 4, 3)


def test_a_regression_head_starts_at_0():
    head = RegressionHead(4, 2)
    assert torch.equal(head.summary(torch.randn(3, 5, 4), Layout.full(3, 5)), torch.zeros(3, 2))
    head.summary(torch.randn(3, 5, 4), Layout.full(3, 5)).sum().backward()
    assert head.out.weight.grad.abs().sum() > 0, "and can leave it"


def test_an_embedding_is_the_projected_mean_at_length_1():
    head, x = EmbeddingHead(4, 3), torch.randn(2, 5, 4)
    for row, found in zip(x, head.summary(x, Layout.full(2, 5)), strict=True):
        vector = head.out(row.mean(dim=0))
        torch.testing.assert_close(found, vector / (vector ** 2).sum().sqrt())
    torch.testing.assert_close(head(x).norm(dim=-1), torch.ones(2, 5))
