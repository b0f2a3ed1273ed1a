"""A state serves itself: an attention appends to whatever state it has, and is given keys, values, mask and bias."""

import pytest
import torch
from torch import nn
from writing_models import writing

import miniformer.model.assembly as assembly
from miniformer.decoding.state import AttentionState, BufferState, ModelState
from miniformer.kernel.context import Context, Memory
from miniformer.kernel.errors import StateError, UserError
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


KINDS = {"keys and values": {}, "latents": {"attention": "mla"}, "a window": {"attention": {"name": "mha", "window": 5}},
         "sums": {"attention": "linear"}}
kinds = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
PROMPTS = torch.tensor([[1, 5, 6], [1, 7, 8]])


@kinds
def test_a_state_grows_with_its_text_and_the_text_is_the_same(fields, monkeypatch):
    model = writing(**fields)
    expected = model.generate(PROMPTS, 60, do_sample=False, eos_id=-1)
    monkeypatch.setattr(assembly, "ROOM", 2)
    feed = model.feed(PROMPTS, 60)
    assert (feed.state.capacity, feed.state.limit) == (5, 62)
    assert torch.equal(model.generate(PROMPTS, 60, do_sample=False, eos_id=-1), expected)


@torch.no_grad()
def test_its_room_is_doubled_up_to_its_limit(monkeypatch):
    monkeypatch.setattr(assembly, "ROOM", 2)
    feed, rooms = writing().feed(PROMPTS, 20), []
    feed(PROMPTS)
    for _ in range(19):
        rooms.append(feed.state.capacity)
        feed(PROMPTS[:, :1])
    assert sorted({*rooms, feed.state.capacity}) == [5, 10, 20, 22]
    assert [layer.buffer.shape[3] for layer in feed.state.layers] == [22, 22]
    with pytest.raises(StateError, match="the state holds 22 tokens, and 23 were given"):
        feed(PROMPTS[:, :1])


class Fixed(ModelState):
    """The states of layers that have room for the columns that they were made for."""

    can_grow = False


def test_a_state_that_cannot_grow_is_refused_with_its_size(monkeypatch):
    model = writing()

    def init_state(batch, capacity):
        return Fixed(model.stack.init_states(batch, capacity), capacity)

    monkeypatch.setattr(model, "init_state", init_state)
    assert model.feed(PROMPTS, 2000).state.capacity == 2002
    with pytest.raises(UserError, match=r"max_new_tokens: a state for 1,000,000,000,000,002 tokens takes some 1,024,\S* GB"):
        model.feed(PROMPTS, 10**15)


class Quantised(nn.Module):
    """A linear layer with a matrix of whole numbers and a scale for each output."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale.half())

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


class Packed(torch.Tensor):
    """A matrix of a class of its own, as libraries for quantised weights have them: a layer may multiply by it, and no more."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("linear", "__get__", "is_floating_point", "numel"):
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        raise NotImplementedError(f"{function.__name__} of a packed matrix")


def quantised(model, kind):
    """The model with linear layers whose weights are no plain floats."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer.bias is None:
                if kind is Quantised:
                    setattr(module, name, Quantised(layer))
                else:
                    layer._parameters["weight"] = layer.weight.detach().as_subclass(Packed)
    return model


@pytest.mark.parametrize("kind", [Quantised, Packed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@kinds
def test_a_model_with_quantised_weights_writes_as_it_does_without_state(kind, dtype, fields):
    """The state is of the dtype of what it holds, whatever the weights are made of."""
    model = quantised(writing(**fields).to(dtype), kind)
    written, anew = (model.generate(PROMPTS, 8, do_sample=False, eos_id=-1, use_state=use_state) for use_state in (True, False))
    assert torch.equal(written, anew) or dtype == torch.bfloat16
    with torch.no_grad():
        feed = model.feed(PROMPTS, 8)
        feed(PROMPTS)
    for layer in feed.state.layers:
        assert not isinstance(layer, BufferState) or (layer.buffer.dtype == dtype and type(layer.buffer) is torch.Tensor)


@pytest.mark.parametrize("kind", [Quantised, Packed])
def test_an_encoder_decoder_with_quantised_weights_writes_as_it_does_without_state(kind):
    model = quantised(writing(has_source=True).float(), kind)
    assert torch.equal(model.generate(PROMPTS, 8, do_sample=False, eos_id=-1),
                       model.generate(PROMPTS, 8, do_sample=False, eos_id=-1, use_state=False))
    assert model.empty_state(1, 8, 4).nbytes > 0
