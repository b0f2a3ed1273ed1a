from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from miniformer.kernel import Batch, Example, Layout
from miniformer.kernel.task import shortened


def test_a_batch_moves_to_a_device_with_its_layout_and_targets():
    batch = Batch(torch.zeros(1, 2), Layout.from_lengths([1], 2), {"labels": torch.zeros(1)}).to("meta")
    assert {t.device.type for t in (batch.inputs, batch.layout.documents, batch.targets["labels"])} == {"meta"}
    assert batch.layout.aligned


@pytest.mark.parametrize(("example", "uncut"), [
    (Example([1, 2, 3]), 0), (Example([1, 2, 3, 4, 5]), 5), (Example(torch.zeros(7, 2)), 7),
    (Example([1], source=[1] * 9), 9), (Example([1], target=[1] * 6), 6), (Example([1] * 5, target=[0.5] * 40), 5)])
def test_an_example_that_was_cut_says_how_long_it_was(example, uncut):
    def cut(example, length):
        source = None if example.source is None else example.source[:length]
        target = example.target[:length] if example.target and len(example.target) < 10 else example.target
        return replace(example, tokens=example.tokens[:length], source=source, target=target)

    shorter = shortened(SimpleNamespace(cut=cut), example, 3)
    assert (shorter.uncut, len(shorter.tokens)) == (uncut, min(3, len(example.tokens)))
