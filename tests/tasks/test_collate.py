"""Batches: padded one by one, or packed already."""

import torch

from miniformer.data.packing import PackedRows
from miniformer.kernel.task import Example
from miniformer.tasks.collate import packed, padded


def rows(documents, length):
    return list(PackedRows([Example(document) for document in documents], length))


def test_padded_rows_are_as_long_as_the_longest():
    tokens, layout = padded([Example([5, 6, 7]), Example([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert layout.documents.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padded_rows_may_be_tensors():
    tokens, _ = padded([Example(torch.tensor([5, 6])), Example([8])])
    assert tokens.tolist() == [[5, 6], [8, 0]]


def test_packed_rows_keep_documents_and_positions_apart():
    tokens, layout, following = packed(rows([[5, 6, 7], [8, 9]], 4))
    assert tokens.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]
    assert layout.documents.tolist() == [[1, 1, 1, 2], [1, 0, 0, 0]]
    assert layout.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert following.tolist() == [[6, 7, -1, 9], [-1, -1, -1, -1]]


def test_facts_of_packed_rows_are_true():
    facts = {name: packed(rows(documents, 4))[1] for name, documents in {
        "one full document": [[1, 2, 3, 4]], "one short document": [[1, 2, 3]],
        "two full documents": [[1, 2], [3, 4]], "two short documents": [[1, 2], [3]]}.items()}
    assert {name: (layout.padded, layout.packed, layout.aligned) for name, layout in facts.items()} == {
        "one full document": (False, False, True), "one short document": (True, False, True),
        "two full documents": (False, True, False), "two short documents": (True, True, False)}
