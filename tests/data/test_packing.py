"""Packed rows: the stream and nothing else, each document's predictions and no other's."""

import depth
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.data.packing import PackedRows, gathered
from miniformer.kernel.task import Example

texts = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=8)
lengths = st.integers(1, 12)


def rows(documents, length):
    packed = PackedRows([Example(document) for document in documents], length)
    return [packed[i] for i in range(len(packed))]


def naive(documents, length):
    """(token, number of the document in its row, next token or -1) of every column, one row after the other."""
    stream = [(token, d, document[i + 1] if i + 1 < len(document) else -1)
              for d, document in enumerate(documents) for i, token in enumerate(document)]
    cut = [stream[i:i + length] for i in range(0, len(stream), length)]
    return [[(token, d - row[0][1] + 1, following) for token, d, following in row] + [(0, 0, -1)] * (length - len(row))
            for row in cut]


@settings(max_examples=depth.examples(100), deadline=None)
@given(texts, lengths)
def test_every_column_is_that_of_the_naive_packing(documents, length):
    found = [list(zip(row.tokens.tolist(), row.documents.tolist(), row.following.tolist(), strict=True))
             for row in rows(documents, length)]
    assert found == naive(documents, length)


@settings(max_examples=depth.examples(50), deadline=None)
@given(texts, lengths)
def test_rows_hold_exactly_the_stream(documents, length):
    stream = [int(t) for row in rows(documents, length) for t in row.tokens[row.documents > 0]]
    assert stream == [token for document in documents for token in document]


@settings(max_examples=depth.examples(50), deadline=None)
@given(texts, lengths)
def test_only_the_end_of_the_last_row_is_padding(documents, length):
    real = torch.cat([row.documents > 0 for row in rows(documents, length)])
    n = sum(map(len, documents))
    assert real[:n].all() and not real[n:].any() and len(real) - n < length


@settings(max_examples=depth.examples(50), deadline=None)
@given(texts, lengths)
def test_no_prediction_is_lost_where_a_row_ends(documents, length):
    assert sum(int((row.following >= 0).sum()) for row in rows(documents, length)) == sum(len(d) - 1 for d in documents)


def test_a_document_that_crosses_rows_counts_as_its_own_in_each():
    first, second = rows([[1, 2, 3, 4, 5, 6]], 4)
    assert first.documents.tolist() == [1, 1, 1, 1] and second.documents.tolist() == [1, 1, 0, 0]
    assert first.following.tolist() == [2, 3, 4, 5] and second.following.tolist() == [6, -1, -1, -1]


def test_documents_of_no_tokens_take_no_place():
    packed = rows([[], [1, 2], [], [3]], 4)
    assert packed[0].tokens.tolist() == [1, 2, 3, 0]
    assert packed[0].following.tolist() == [2, -1, -1, -1]


def test_a_column_has_the_bytes_of_the_token_that_follows_it():
    examples = [Example([1, 2, 3], byte_counts=[0, 5, 6]), Example([4, 5], byte_counts=[7, 8])]
    for those in (examples, gathered(examples)):
        packed = PackedRows(those, 4)
        assert [row.byte_counts.tolist() for row in packed] == [[5, 6, 0, 8], [0, 0, 0, 0]]
    assert PackedRows([examples[0], Example([4, 5])], 4)[0].byte_counts is None, "one does not say it"
    assert list(gathered(examples)) == examples
    assert list(gathered([*examples, Example([4])])) == [*examples, Example([4])]


def test_ids_of_the_largest_vocabularies_are_kept():
    assert rows([[0, 262_143]], 2)[0].tokens.tolist() == [0, 262_143]


def test_examples_may_be_tensors_or_arrays():
    packed = PackedRows([Example(torch.tensor([1, 2])), Example(np.array([3]))], 3)
    assert packed[0].tokens.tolist() == [1, 2, 3]


def test_iteration_ends():
    assert len(list(PackedRows([Example([1, 2, 3])], 2))) == 2


@pytest.mark.parametrize("index", [2, -1])
def test_there_is_no_row_beyond(index):
    with pytest.raises(IndexError):
        PackedRows([Example([1, 2, 3])], 2)[index]
