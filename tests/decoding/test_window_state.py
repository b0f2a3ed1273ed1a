"""The state of an attention with a window holds what the window can reach, and gives what one that holds everything gives."""

import random

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.window_state import REWIND, WindowState, slots_needed
from miniformer.kernel.context import Context, Signal
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.masks import Window
from miniformer.model.attention import KeyValueState, MultiHeadAttention
from miniformer.model.position import T5Bias
from miniformer.model.transformer import Transformer

D, H, K, E = 8, 2, 1, 4
seeds = st.integers(0, 2**16)
windows = st.sampled_from([1, 2, 5, 20, 40])
KINDS = ["full", "left", "right", "holes", "packed"]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class Writer:
    """A layout that grows as texts do: what comes next in each row goes on with it, starts a document, or is padding."""

    def __init__(self, draw: random.Random, rows: int) -> None:
        self.draw, self.layout, self.kind = draw, None, None
        self.last = [(1, -1)] * rows  # the document and position of each row's last token

    def __call__(self, length: int, kind: str) -> Layout:
        rows = []
        for b in range(len(self.last)):
            real = {"left": [False] * (start := self.draw.randrange(length)) + [True] * (length - start),
                    "right": [True] * (stop := self.draw.randint(1, length)) + [False] * (length - stop),
                    "holes": [self.draw.random() < 0.5 for _ in range(length)]}.get(kind, [True] * length)
            row = []
            for one in real:
                document, position = self.last[b]
                if one:
                    starts = kind == "packed" and position >= 0 and self.draw.random() < 0.1
                    self.last[b] = (document + 1, 0) if starts else (document, position + 1)
                row.append(self.last[b] if one else (0, 0))
            rows.append(row)
        places = torch.tensor([[(position, document) for document, position in row] for row in rows])
        documents = places[..., 1]
        piece = Layout(places[..., 0], documents, not bool(documents.all()), kind == "packed")
        self.layout = piece if self.layout is None else self.layout.append_columns(piece)
        return piece

    def pick(self, index: list[int]) -> None:
        self.layout, self.last = self.layout.rows(torch.tensor(index)), [self.last[i] for i in index]

    def cut(self, length: int) -> None:
        self.layout = self.layout.columns(length)
        ends = self.layout.next_position()
        self.last = list(zip(ends.documents[:, 0].tolist(), (ends.positions[:, 0] - 1).tolist(), strict=True))
        self.last = [(max(1, document), position if document else -1) for document, position in self.last]


class Decoding:
    """Rows that are decoded with a state of a window, with one that holds everything, and by whole passes."""

    def __init__(self, module, encoding, draw, rows, capacity):
        self.module, self.encoding, self.draw = module, encoding, draw
        self.write, self.x = Writer(draw, rows), torch.zeros(rows, 0, D, dtype=torch.float64)
        self.most, self.state = 0, module.init_state(rows, capacity)
        self.full = KeyValueState(torch.zeros(2, rows, K, capacity, E, dtype=torch.float64))

    def context(self, layout, keys=None):
        context = Context(layout, causal=True, keys=keys)
        return Context(layout, True, keys, signal=context.signals([self.encoding])[0]) if self.encoding else context

    def feed(self, length, kind, check_whole):
        self.read(self.write(length, kind), check_whole)

    def read(self, piece, check_whole):
        length = piece.shape[1]
        new = torch.randn(len(self.x), length, D, dtype=torch.float64)
        self.x = torch.cat([self.x, new], dim=1)
        found = self.module(new, self.context(piece, self.write.layout), self.state)
        close(found[piece.real], self.module(new, self.context(piece, self.write.layout), self.full)[piece.real])
        if check_whole:
            close(found[piece.real], self.module(self.x, self.context(self.write.layout))[:, -length:][piece.real])
        self.most = max(self.most, self.x.shape[1])
        assert self.state.length == self.x.shape[1] and self.state.min_length <= max(0, self.most - REWIND)
        assert self.state.slots.length <= slots_needed(self.module.rule.size, 10**6)

    def reorder(self, index):
        for state in (self.state, self.full):
            state.reorder(torch.tensor(index))
        self.write.pick(index)
        self.x = self.x[torch.tensor(index)]

    def truncate(self, length):
        for state in (self.state, self.full):
            state.truncate(length)
        self.write.cut(length)
        self.x = self.x[:, :length]

    def join(self, other, capacity):
        columns = max(one.x.shape[1] - int(one.write.layout.first().min()) for one in (self, other))
        for mine, theirs in ((self.state, other.state), (self.full, other.full)):
            mine.join(theirs, columns, columns + capacity)
        self.most = columns + max(one.most - one.x.shape[1] for one in (self, other))
        self.x = torch.cat([latest(one.x, 1, columns) for one in (self, other)])
        self.write.layout = self.write.layout.stack_rows(other.write.layout, columns)
        self.write.last += other.write.last


def attention(seed, window, **options):
    torch.manual_seed(seed)
    return MultiHeadAttention(D, H, n_kv_heads=K, window=window, **options).double().eval()


steps = st.lists(st.sampled_from(["piece", "piece", "tokens", "tokens", "reorder", "truncate", "join"]), min_size=2, max_size=7)


@settings(max_examples=depth.examples(40))
@given(steps, windows, st.booleans(), seeds)
@torch.no_grad()
def test_it_gives_what_a_state_that_holds_everything_gives_and_what_is_computed_anew(steps, window, biased, seed):
    """Whatever happens to it: texts padded anywhere, packed, fed in pieces of any length, picked, cut, and joined by others."""
    draw, module = random.Random(seed), attention(seed, window)
    encoding = T5Bias(D, H, 4096).double() if biased else None

    def start(kind):
        one = Decoding(module, encoding, draw, draw.randint(1, 3), 4000)
        one.feed(draw.choice([3, 60, 200]), kind, True)
        return one

    one = start(draw.choice(KINDS))
    for step in steps:
        if step == "piece":
            one.feed(draw.randint(1, 150), draw.choice(KINDS), True)
        elif step == "tokens":
            for i in range(50):
                one.feed(1, draw.choice(["full", "holes"]) if draw.random() < 0.1 else "full", i % 10 == 0)
        elif step == "reorder":
            one.reorder([draw.randrange(len(one.x)) for _ in range(draw.randint(1, 3))])
        elif step == "truncate":
            one.truncate(draw.randint(max(1, one.state.min_length), one.x.shape[1]))
        elif len(one.x) < 6:
            one.join(start(draw.choice(KINDS)), 4000)


@torch.no_grad()
def test_slots_that_a_row_lacks_when_it_joins_are_of_no_column():
    """The first column of those who join is a token that the shorter of them still looks at."""
    one, other = (Decoding(attention(0, 40), None, random.Random(0), rows, 4000) for rows in (1, 2))
    for decoding, lengths in ((one, [90]), (other, [200, 4])):
        decoding.write.layout, decoding.write.last = Layout.from_lengths(lengths), [(1, n - 1) for n in lengths]
        decoding.read(decoding.write.layout, True)
    assert one.state.slots.length > other.state.slots.length
    one.join(other, 4000)
    for _ in range(30):
        one.feed(1, "full", True)


@torch.no_grad()
def test_a_bias_is_of_the_columns_that_are_held():
    encoding = T5Bias(D, H, 4096).double()
    for parameter in encoding.parameters():
        torch.nn.init.normal_(parameter)
    one = Decoding(attention(0, 5), encoding, random.Random(0), 2, 4000)
    for length in (slots_needed(5, 4000) + 1, 1, 1):
        one.feed(length, "full", True)
    assert one.state.slots.length < one.state.length


@torch.no_grad()
def test_joined_rows_go_back_only_as_far_as_each_could():
    one, other = (Decoding(attention(0, 5), None, random.Random(0), rows, 4000) for rows in (1, 2))
    one.feed(slots_needed(5, 4000), "full", True)
    other.write.layout, other.write.last = Layout.from_lengths([200, 4]), [(1, 199), (1, 3)]
    other.read(other.write.layout, True)
    other.truncate(other.state.min_length)
    one.join(other, 4000)
    assert one.state.min_length == one.state.length
    one.feed(1, "full", True)
    one.truncate(one.state.min_length)
    one.feed(40, "full", True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("T", [1, 7, 512])
@torch.no_grad()
def test_it_does_not_grow_however_rows_are_padded(side, T):
    """A short row of a batch that is padded on the right needs its first columns for long, and nobody else's."""
    module, W, lengths = attention(0, 32), 32, [600, 4]
    state, keys = module.init_state(2, 4000), Layout.from_lengths(lengths, side=side)
    module(torch.randn(2, 600, D, dtype=torch.float64), Context(keys, True), state)
    held = state.nbytes
    slots = slots_needed(W, 4000)
    assert held == 2 * 2 * K * slots * E * 8 + 2 * slots * 8, "keys and values, and the column of each"
    while state.length + T < 2000:
        follow = keys.next_position()
        piece = Layout(follow.positions + torch.arange(T), follow.documents.expand(-1, T), packed=False)
        keys = keys.append_columns(piece)
        module(torch.randn(2, T, D, dtype=torch.float64), Context(piece, True, keys), state)
    assert state.nbytes == held and state.slots.length <= W - 1 + 2 * REWIND


def test_it_needs_no_more_room_than_there_are_columns():
    assert attention(0, 32).init_state(3, 10).nbytes == 2 * 3 * K * 10 * E * 8 + 3 * 10 * 8


def fed(columns, capacity=1000, window=5):
    module = attention(0, window)
    state = module.init_state(1, capacity)
    module(torch.zeros(1, columns, D, dtype=torch.float64), Context(Layout.full(1, columns), True), state)
    return state


def test_it_goes_back_by_its_reach_and_refuses_what_was_dropped():
    state = fed(200)
    assert state.min_length == 200 - REWIND
    with pytest.raises(StateError, match=f"what a window of 5 reaches from {199 - REWIND} of 200 tokens was dropped; go back "
                                         f"to {200 - REWIND} at least"):
        state.truncate(199 - REWIND)
    assert state.length == 200
    state.truncate(200 - REWIND)
    assert state.length == state.min_length == 200 - REWIND
    state.truncate(300)
    assert state.length == 200 - REWIND


@given(st.integers(1, slots_needed(5, 1000)))
def test_before_anything_was_dropped_it_goes_back_to_any_length(columns):
    state = fed(columns)
    state.truncate(0)
    assert state.length == state.min_length == 0


def test_it_refuses_more_than_its_capacity_and_a_layout_of_other_columns():
    state, part = fed(90, 100), torch.zeros(1, K, 11, E, dtype=torch.float64)
    with pytest.raises(StateError, match="holds 100 tokens, and 101 were given"):
        state.append((part, part), Context(Layout.full(1, 101), causal=True), Window(5))
    with pytest.raises(StateError, match="has seen 93 columns with those of this call, and their layout has 3; give"):
        state.append((part[:, :, :3], part[:, :, :3]), Context(Layout.full(1, 3), causal=True), Window(5))
    assert state.length == 90


@torch.no_grad()
def test_a_model_goes_back_in_all_layers_or_in_none():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(
        vocab_size=19, d_model=16, n_heads=2, d_ff=16, max_seq_len=400, causal=True,
        layers=[{"attention": one} for one in ("mha", {"name": "mha", "window": 3}, {"name": "mha", "window": 50})]))
    model, row = model.double().eval(), torch.randint(19, (1, 300))
    state = model.init_state(1, 300)
    model(row[:, :200], state=state)
    assert [type(layer) for layer in state.layers] == [KeyValueState, WindowState, WindowState]
    with pytest.raises(StateError, match="WindowState cannot go back from 200 tokens to 100"):
        state.truncate(100)
    assert {layer.length for layer in state.layers} == {200}
    state.truncate(200 - REWIND)
    close(model(row[:, 200 - REWIND:], state=state), model(row)[:, 200 - REWIND:])


@pytest.mark.parametrize("options", [{"kernel": "eager", "sinks": True, "softcap": 3.0}, {"kernel": "flex"},
                                     {"qk_norm": "rmsnorm"}])
@torch.no_grad()
def test_every_kernel_takes_what_is_left_of_the_mask_and_the_bias(options):
    one = Decoding(attention(3, 5, **options), T5Bias(D, H, 4096).double(), random.Random(3), 2, 400)
    one.feed(150, "left", True)
    for _ in range(3):
        one.feed(40, "full", True)


def test_a_bias_that_is_none_stays_none():
    """As an encoding without one gives it."""
    one = Decoding(attention(3, 5), None, random.Random(3), 2, 400)
    one.context = lambda layout, keys=None: Context(layout, True, keys, signal=Signal(T5Bias(D, H, 8), layout.positions, None))
    one.feed(150, "left", True)
    one.feed(40, "full", True)
