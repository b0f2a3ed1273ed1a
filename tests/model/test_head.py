import pytest
import torch
from hypothesis import given
from strategies import layouts
from torch import nn

from miniformer.kernel import Layout
from miniformer.model.head import ClassificationHead, LanguageModelHead


@pytest.mark.parametrize("cls", [LanguageModelHead, ClassificationHead])
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
def test_pool_mean_reads_every_token_but_padding(layout):
    head, x = ClassificationHead(4, 3, pool="mean").double(), torch.randn(*layout.shape, 4, dtype=torch.float64)
    expected = [head.out(sum(x[b, t] for t in range(len(row)) if row[t]) / sum(row))
                for b, row in enumerate(layout.real.tolist())]
    torch.testing.assert_close(head.summary(x, layout), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_summary_is_blind_to_what_stands_in_the_padding(pool):
    head, x, layout = ClassificationHead(4, 3, pool=pool), torch.randn(2, 3, 4), Layout.from_lengths([2, 3])
    other = torch.where(layout.real[..., None], x, 1e9)
    assert torch.equal(head.summary(x, layout), head.summary(other, layout))
