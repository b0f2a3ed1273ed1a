from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

from miniformer.kernel import Context, Layout, MaskRule, Memory
from miniformer.model.position import Learned, NoPosition
from miniformer.model.rotary import Rotary

calls = Counter()


@dataclass(frozen=True)
class Counted(MaskRule):
    key: str

    def allows(self, queries, keys):
        calls[self.key] += 1
        return queries.positions[:, :, None] >= keys.positions[:, None, :]


def test_the_plain_context_is_of_unpadded_rows():
    context = Context.plain(torch.zeros(2, 3, 4))
    assert torch.equal(context.layout.positions, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert context.layout.real.all()
    assert not context.causal


def test_a_rule_is_prepared_once_in_a_forward_and_all_that_derives_from_it():
    context = Context(Layout.full(1, 3))
    mask = context.mask(Counted("once"))
    assert replace(context, signal=None).mask(Counted("once")) is mask
    assert calls["once"] == 1


def test_the_mask_of_an_attention_adds_its_rule_to_documents_and_causality():
    layout = Layout.from_documents(torch.tensor([[1, 1, 2]]))
    assert Context(layout).mask().allowed[0, 0].tolist() == [[True, True, False], [True, True, False],
                                                             [False, False, True]]
    assert Context(layout, causal=True).mask().allowed[0, 0].tolist() == [[True, False, False], [True, True, False],
                                                                          [False, False, True]]
    assert Context(layout).mask(Counted("both")).allowed[0, 0].tolist() == [[True, False, False], [True, True, False],
                                                                            [False, False, True]]


def test_nothing_recorded_is_no_loss():
    assert Context.plain(torch.zeros(1, 1, 1)).auxiliary_loss() is None


def test_the_auxiliary_loss_sums_only_what_was_recorded_as_loss():
    context = Context.plain(torch.zeros(1, 1, 1))
    context.record("balance", torch.tensor(2.0), loss=True)
    context.record("share", torch.tensor(100.0))
    context.record("z", torch.tensor(0.5), loss=True)
    assert context.auxiliary_loss() == 2.5


def test_records_reach_the_context_that_a_caller_holds():
    context = Context.plain(torch.zeros(1, 1, 1))
    replace(context, causal=True).record("entropy", torch.tensor(1.0))
    assert [(record.name, record.loss) for record in context.records] == [("entropy", False)]


def test_contexts_of_different_forwards_share_no_records():
    x = torch.zeros(1, 1, 1)
    Context.plain(x).record("a", x)
    assert Context.plain(x).records == []


def test_reading_a_memory_sees_all_of_its_document_there():
    context = Context(Layout.from_documents(torch.tensor([[1, 2]])), causal=True)
    memory = Memory(torch.zeros(1, 3, 4), Layout.from_documents(torch.tensor([[1, 1, 2]])))
    assert context.for_memory(memory).mask().allowed[0, 0].tolist() == [[True, True, False], [False, False, True]]


def test_reading_a_memory_leaves_the_masks_of_self_attention_alone():
    context = Context(Layout.full(1, 2), causal=True)
    own = context.mask()
    reading = context.for_memory(Memory(torch.zeros(1, 3, 4), Layout.from_lengths([2], 3)))
    assert reading.mask().allowed.shape == (1, 1, 2, 3)
    assert context.mask() is own


def test_reading_a_memory_records_to_the_same_list():
    context = Context(Layout.full(1, 2))
    context.for_memory(Memory(torch.zeros(1, 3, 4), Layout.full(1, 3))).record("a", torch.tensor(1.0), loss=True)
    assert context.auxiliary_loss() == 1.0


def test_a_query_that_finds_nothing_in_the_memory_is_not_left_empty():
    """Its softmax would be undefined, and its gradient would spoil everyone's."""
    context = Context(Layout.from_lengths([1], 2)).for_memory(Memory(torch.zeros(1, 2, 4), Layout.full(1, 2)))
    assert context.mask().allowed[0, 0].any(dim=-1).all()


def test_without_a_signal_queries_are_not_rotated():
    x = torch.randn(1, 2, 3, 4)
    context = Context(Layout.full(1, 3))
    assert context.rotate(x, "q") is x
    assert context.bias is None


def test_a_signal_rotates_by_the_positions_of_this_call():
    layout = Layout.full(1, 3, start=2)
    encoding, x = Rotary(8, 2, 16), torch.randn(1, 2, 3, 4)
    [signal] = Context(layout).signals([encoding])
    rotated = Context(layout, signal=signal).rotate(x, "q")
    assert torch.equal(rotated, encoding.rotate(x, encoding.precompute(layout.positions), "q"))
    assert not torch.equal(rotated, x)


@pytest.mark.parametrize("encoding", [NoPosition, Learned])
def test_encodings_that_do_not_rotate_leave_queries_alone(encoding):
    x, layout = torch.randn(1, 2, 3, 4), Layout.full(1, 3)
    [signal] = Context(layout).signals([encoding(8, 2, 16)])
    assert torch.equal(Context(layout, signal=signal).rotate(x, "k"), x)


def test_a_context_is_read_only():
    with pytest.raises(AttributeError):
        Context(Layout.full(1, 1)).causal = True
