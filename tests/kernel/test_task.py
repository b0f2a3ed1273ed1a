import torch

from miniformer.kernel import Batch, Layout


def test_a_batch_moves_to_a_device_with_its_layout_and_targets():
    batch = Batch(torch.zeros(1, 2), Layout.from_lengths([1], 2), {"labels": torch.zeros(1)}).to("meta")
    assert {t.device.type for t in (batch.inputs, batch.layout.documents, batch.targets["labels"])} == {"meta"}
    assert batch.layout.aligned
