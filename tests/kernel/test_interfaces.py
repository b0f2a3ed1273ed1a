import pytest
import torch
from hypothesis import given

from miniformer.contracts.kit.drawing import layouts
from miniformer.kernel import Attention, Context, FeedForward, Head, Layout, PositionEncoding, StateError


class Mean(Attention):
    """The mean of what a token may see."""

    def forward(self, x, context, state=None):
        allowed = context.layout.real[:, None, :] & context.layout.real[:, :, None]
        return allowed.to(x.dtype) @ x / allowed.sum(-1, keepdim=True).clamp(min=1)


class Doubled(FeedForward):
    def forward(self, x, context):
        context.record("length", torch.tensor(float(context.layout.shape[1])))
        return 2 * x


class First(Head):
    """The first element of each hidden state."""

    def forward(self, x, select=None):
        return (x if select is None else x[select])[..., :1]


class Shifted(PositionEncoding):
    def embed(self, x, positions):
        return x + 1

    def bias(self, q_positions, k_positions):
        return None


def test_an_attention_runs_on_a_tensor_alone():
    assert torch.equal(Mean(2, 1)(torch.tensor([[[0.0, 2.0], [4.0, 4.0]]])),
                       torch.tensor([[[2.0, 3.0], [2.0, 3.0]]]))


def test_an_attention_is_given_the_callers_context():
    x = torch.tensor([[[2.0], [9.0]]])
    assert Mean(1, 1)(x, Context(Layout.from_lengths([1], 2))).tolist() == [[[2.0], [0.0]]]


def test_a_feed_forward_runs_on_a_tensor_alone():
    assert Doubled(1, 1)(torch.ones(1, 2, 1)).tolist() == [[[2.0], [2.0]]]


def test_a_feed_forward_records_in_the_callers_context():
    x = torch.ones(1, 3, 1)
    context = Context.plain(x)
    Doubled(1, 1)(x, context)
    assert [record.value for record in context.records] == [3.0]


def test_an_attention_without_a_state_of_its_own_cannot_be_run_step_by_step():
    with pytest.raises(StateError, match="Mean defines no init_state"):
        Mean(8, 2).init_state(2, 4)


@given(layouts(max_rows=3))
def test_a_summary_is_the_output_at_each_rows_first_token(layout):
    hidden = torch.arange(layout.positions.numel(), dtype=torch.float64).view(*layout.shape, 1)
    rows = zip(hidden[..., 0].tolist(), layout.documents.tolist())
    assert First(1, 1).summary(hidden, layout).tolist() == [
        [next(h for h, document in zip(*row) if document)] for row in rows]


def test_a_head_is_not_tied_unless_it_says_so():
    table = torch.nn.Parameter(torch.zeros(3, 2))
    assert First(2, 3).tie(table) is False


def test_the_base_of_position_encodings_does_nothing():
    encoding, x = PositionEncoding(4, 2, 8), torch.randn(1, 2, 3, 2)
    positions = torch.arange(3)[None]
    assert encoding.embed(x, positions) is x
    assert encoding.rotate(x, encoding.precompute(positions), "q") is x
    assert encoding.bias(positions, positions) is None


def test_the_hooks_of_a_position_encoding_are_those_that_it_fills():
    assert PositionEncoding.hooks() == frozenset()
    assert Shifted.hooks() == {"embed", "bias"}


@pytest.mark.parametrize("interface", [Attention, FeedForward, Head])
def test_an_interface_without_forward_cannot_be_made(interface):
    with pytest.raises(TypeError, match="forward"):
        interface(4, 2)
