"""A state serves itself: an attention appends to whatever state it has, and is given keys, values, mask and bias."""

import torch

from miniformer.decoding.state import AttentionState
from miniformer.kernel.context import Context, Memory
from miniformer.kernel.layout import Layout
from miniformer.kernel.masks import Mask
from miniformer.model.attention import MultiHeadAttention

D, H = 8, 2


class LastTwo(AttentionState):
    """Two columns at most, whatever the mask would allow: what a plugin may want to remember."""

    parts, length, nbytes = None, 0, 0

    def append(self, parts, context, rule):
        held = parts if self.parts is None else [torch.cat(pair, dim=2) for pair in zip(self.parts, parts, strict=True)]
        self.parts, self.length = tuple(part[:, :, -2:] for part in held), self.length + parts[0].shape[2]
        return self.parts, Mask(), None

    def reorder(self, index):
        self.parts = tuple(part[index] for part in self.parts)

    def truncate(self, length):
        pass


def attention(**options):
    torch.manual_seed(0)
    return MultiHeadAttention(D, H, **options).double().eval()


@torch.no_grad()
def test_an_attention_looks_at_what_its_state_gives_it():
    module, x, state = attention(), torch.randn(1, 5, D, dtype=torch.float64), LastTwo()
    steps = [module(x[:, t:t + 1], Context(Layout.full(1, 1, start=t), True, Layout.full(1, t + 1)), state) for t in range(5)]
    expected = attention(window=2)(x, Context(Layout.full(1, 5), True))
    torch.testing.assert_close(torch.cat(steps, dim=1), expected)


@torch.no_grad()
def test_a_cross_attention_reads_its_memory_through_its_state():
    module, x = attention(), torch.randn(2, 3, D, dtype=torch.float64)
    memory = Memory(torch.randn(2, 4, D, dtype=torch.float64), Layout.from_lengths([4, 2]))
    context = Context(Layout.full(2, 3), True).for_memory(memory)
    state = module.remember(memory)
    torch.testing.assert_close(module(x, context, state), module(x, context))
    (keys, values), mask, bias = state.append((), context, None)
    assert keys.shape == values.shape == (2, H, 4, D // H) and bias is None
    assert mask.allowed is not None and mask.allowed[1, 0, 0].tolist() == [True, True, False, False]
