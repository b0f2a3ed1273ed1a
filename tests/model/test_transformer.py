import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.drawing import layouts, seeds
from miniformer.kernel import (
    Context,
    Entry,
    FeedForward,
    Layout,
    Registry,
    SpecError,
    StateError,
    UserError,
    discover,
    use_registry,
)
from miniformer.model.assembly import evaluating
from miniformer.model.rotary import Rotary
from miniformer.model.transformer import Transformer

V = 11
SMALL = {"vocab_size": V, "d_model": 8, "n_heads": 2, "n_layers": 2, "max_seq_len": 16}
VARIANTS = {
    "plain": {},
    "post-norm": {"norm_placement": "post", "norm": "layernorm"},
    "sandwich": {"norm_placement": "sandwich"},
    "parallel": {"parallel": True},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "grouped": {"attention": {"name": "mha", "n_kv_heads": 1}},
    "pattern": {"layers": [{"attention": {"name": "mha", "window": 2}}, {"position": "none", "ffn": "relu"}]},
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
both_directions = pytest.mark.parametrize("causal", [True, False])


class Recording(FeedForward):
    """Records a loss, as a mixture of experts does."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.scale, self.calls = torch.nn.Linear(d_model, d_model), 0

    def forward(self, x, context):
        self.calls += 1
        y = self.scale(x)
        context.record("size", y.square().mean(), loss=True)
        return y


def build(**fields):
    config = {**SMALL, **fields}
    if "layers" in fields:
        del config["n_layers"]
    return Transformer(TransformerConfig(**config)).double().eval()


def tokens(*shape):
    return torch.randint(V, shape)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# --- what a token may depend on

@variants
@both_directions
@torch.no_grad()
def test_a_packed_row_gives_what_its_documents_give_alone(fields, causal):
    model, texts = build(causal=causal, **fields), [tokens(1, n) for n in (3, 1, 4)]
    documents = torch.tensor([[1] * 3 + [2] + [3] * 4 + [0] * 2])
    row = torch.cat([*texts, tokens(1, 2)], dim=1)
    packed = model(row, Context(Layout.from_documents(documents)))
    for number, text in enumerate(texts, 1):
        close(packed[documents == number], model(text)[0])


@variants
@both_directions
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(fields, causal, side):
    model, texts = build(causal=causal, **fields), [tokens(1, n) for n in (3, 5)]
    layout = Layout.from_lengths([3, 5], 6, side)
    rows = tokens(2, 6)
    for b, text in enumerate(texts):
        rows[b, layout.real[b]] = text[0]
    padded = model(rows, Context(layout))
    for b, text in enumerate(texts):
        close(padded[b, layout.real[b]], model(text)[0])


@variants
@torch.no_grad()
def test_a_causal_model_sees_nothing_later(fields):
    model, row = build(causal=True, **fields), tokens(1, 6)
    changed = row.clone()
    changed[0, 3] = (row[0, 3] + 1) % V
    before, after = model(row), model(changed)
    close(after[:, :3], before[:, :3])
    assert ((after - before)[0, 3:].abs().amax(dim=-1) > 1e-8).all()


@torch.no_grad()
def test_an_encoder_sees_everything():
    model, row = build(), tokens(1, 6)
    for column in range(6):
        changed = row.clone()
        changed[0, column] = (row[0, column] + 1) % V
        assert ((model(changed) - model(row))[0].abs().amax(dim=-1) > 1e-8).all()


@torch.no_grad()
def test_windows_of_a_pattern_limit_what_is_seen():
    model = build(causal=True, layers=[{"repeat": 2, "attention": {"name": "mha", "window": 2}}])
    row = tokens(1, 6)
    changed = row.clone()
    changed[0, 0] = (row[0, 0] + 1) % V
    moved = (model(changed) - model(row))[0].abs().amax(dim=-1) > 1e-8
    assert moved.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(("position", "tells"), [("none", False), ("rope", True), ("learned", True),
                                                 ("sinusoidal", True)])
@torch.no_grad()
def test_an_encoder_tells_order_by_its_position_encoding_alone(position, tells):
    model, row = build(position=position), torch.tensor([[1, 2, 3, 4]])
    moved = (model(row.flip(1)).flip(1) - model(row)).abs().max() > 1e-6
    assert bool(moved) == tells


@torch.no_grad()
def test_a_layer_without_positions_is_not_rotated():
    model, row = build(layers=[{"position": "none"}, {"position": "none"}]), torch.tensor([[1, 2, 3, 4]])
    assert type(model.stack.positions[0]) is Rotary
    close(model(row.flip(1)).flip(1), model(row))


# --- decoding

@variants
@given(layout=layouts(max_rows=2, max_length=5), cuts=st.sets(st.integers(1, 8), max_size=3),
       extra=st.integers(0, 3), seed=seeds)
@settings(max_examples=8)
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(fields, layout, cuts, extra, seed):
    torch.manual_seed(seed)
    model, (B, T) = build(causal=True, **fields), layout.shape
    follow = layout.next_position()
    later = Layout(follow.positions + torch.arange(extra), follow.documents.expand(-1, extra))
    whole = layout.append_columns(later)
    row, state = tokens(B, T + extra), model.init_state(B, T + extra)
    out = [model(row[:, :T], Context(layout), state)]
    cuts = [T, *sorted(T + cut for cut in cuts if cut < extra), T + extra]
    out += [model(row[:, start:stop], state=state) for start, stop in pairwise(cuts) if stop > start]
    close(torch.cat(out, dim=1)[whole.real], model(row, Context(whole))[whole.real])
    assert state.length == T + extra


@torch.no_grad()
def test_a_prompt_may_be_fed_in_pieces_of_its_layout():
    model, documents = build(causal=True), torch.tensor([[1, 1, 2, 2, 2, 3]])
    row, layout, state = tokens(1, 6), Layout.from_documents(documents), model.init_state(1, 6)
    pieces = [model(row[:, a:b], Context(Layout(layout.positions[:, a:b], documents[:, a:b])), state)
              for a, b in [(0, 3), (3, 4), (4, 6)]]
    close(torch.cat(pieces, dim=1), model(row, Context(layout)))


@variants
@torch.no_grad()
def test_a_reordered_state_goes_on_with_the_rows_that_were_kept(fields):
    model, row, index = build(causal=True, **fields), tokens(2, 5), torch.tensor([1, 0, 1])
    layout = Layout.from_lengths([4, 2], side="left")
    state = model.init_state(2, 5)
    model(row[:, :4], Context(layout), state)
    state.reorder(index)
    found = model(row[index, 4:], state=state)
    expected = model(row, Context(layout.append_columns(layout.next_position())))
    close(found, expected[index, 4:])


@variants
@pytest.mark.parametrize("length", [0, 1, 3])
@torch.no_grad()
def test_a_truncated_state_goes_on_from_where_it_was_cut(fields, length):
    model, row = build(causal=True, **fields), tokens(2, 5)
    state = model.init_state(2, 6)
    model(torch.cat([row[:, :length], tokens(2, 6 - length)], dim=1), state=state)
    state.truncate(length)
    assert state.length == length
    close(model(row[:, length:], state=state), model(row)[:, length:])


@torch.no_grad()
def test_more_than_the_capacity_is_refused_and_the_state_stays_usable():
    model, row = build(causal=True), tokens(1, 4)
    state = model.init_state(1, 4)
    model(row[:, :3], state=state)
    with pytest.raises(StateError, match="the state holds 4 tokens, and 5 were given"):
        model(tokens(1, 2), state=state)
    assert state.length == 3
    close(model(row[:, 3:], state=state), model(row)[:, 3:])


@torch.no_grad()
def test_where_one_layer_cannot_go_back_none_does():
    model, row = build(causal=True, layers=[{"attention": "mha"}, {"attention": "linear"}]), tokens(1, 5)
    state = model.init_state(1, 5)
    model(row[:, :4], state=state)
    with pytest.raises(StateError, match="LinearState cannot go back from 4 tokens to 2; start again with an empty state"):
        state.truncate(2)
    assert state.length == 4
    close(model(row[:, 4:], state=state), model(row)[:, 4:])


def test_a_state_tells_its_bytes():
    model = build(causal=True, attention={"name": "mha", "n_kv_heads": 1})
    assert model.init_state(3, 10).nbytes == 2 * 2 * 3 * 1 * 10 * 4 * 8  # layers, k and v, B, K, C, E, bytes


def test_a_model_that_sees_later_tokens_has_no_state():
    with pytest.raises(StateError, match="only a causal model can be run step by step"):
        build().init_state(1, 4)


# --- lengths

def test_an_encoding_that_ends_refuses_longer_sequences():
    model = build(position="learned", causal=True)
    model(tokens(1, 16))
    with pytest.raises(SpecError, match="17 tokens: position 'learned' ends at max_seq_len = 16"):
        model(tokens(1, 17))
    with pytest.raises(SpecError, match="17 tokens"):
        model.init_state(1, 17)


@pytest.mark.parametrize("position", ["none", "rope", "sinusoidal"])
def test_an_encoding_that_goes_on_takes_longer_sequences(position):
    assert build(position=position)(tokens(1, 20)).shape == (1, 20, V)


# --- inputs and outputs

def test_the_readout_is_given_hidden_states_and_the_head():
    model, row = build(), tokens(2, 3)
    hidden, head = model(row, readout=lambda hidden, head: (hidden, head))
    assert hidden.shape == (2, 3, 8)
    close(head(hidden), model(row))


def test_features_are_taken_instead_of_tokens():
    model = build(input_dim=5, output_dim=3)
    assert model(torch.randn(2, 4, 5, dtype=torch.float64)).shape == (2, 4, 3)


def test_records_reach_the_callers_context():
    with recording():
        model = build(ffn="recording")
    context = Context(Layout.full(1, 3))
    model(tokens(1, 3), context)
    assert [record.name for record in context.records] == ["size", "size"]


@torch.no_grad()
def test_a_context_can_be_used_again():
    model, row, context = build(causal=True), tokens(1, 4), Context(Layout.from_lengths([3], 4, "left"))
    assert torch.equal(model(row, context), model(row, context))


@torch.no_grad()
def test_a_context_can_serve_models_of_both_directions():
    row, context = tokens(1, 4), Context(Layout.from_lengths([3], 4, "left"))
    for model in (build(causal=False), build(causal=True)):
        assert torch.equal(model(row, context), model(row, Context(context.layout)))


def test_rope_mha_is_mha_with_rope():
    torch.manual_seed(1)
    one = build(attention="rope-mha")
    torch.manual_seed(1)
    other = build(attention="mha", position="rope")
    row = tokens(1, 4)
    assert one.config == other.config
    assert torch.equal(one(row), other(row))


# --- the tied head

def test_a_tied_head_shares_the_embeddings_weight():
    model = build()
    assert model.head.out.weight is model.embedding.weight
    assert build(head={"name": "lm", "tied": False}).head.out.weight is not model.embedding.weight


def test_a_tied_head_stays_tied_in_a_copy():
    model = copy.deepcopy(build())
    assert model.head.out.weight is model.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_saved_model_comes_back_the_same(tmp_path, tied):
    model, row = build(causal=True, head={"name": "lm", "tied": tied}).float(), tokens(2, 4)
    model.save_pretrained(tmp_path / "model")
    again = Transformer.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(row), model(row))
    assert (again.head.out.weight is again.embedding.weight) == tied
    assert not again.training


def test_a_model_can_be_made_without_memory():
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**SMALL))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in build().named_parameters()}


# --- activation checkpointing

def recording():
    entry = Entry("ffn", "recording", f"{__name__}:Recording", "acme", "1.0")
    return use_registry(Registry([*discover(plugins="none"), entry]))


def train_step(checkpointing, layout):
    torch.manual_seed(3)
    with recording():
        model = build(ffn="recording", dropout=0.5, causal=True, activation_checkpointing=checkpointing).train()
    context, row = Context(layout), tokens(*layout.shape)
    torch.manual_seed(4)
    loss = model(row, context).square().mean() + context.auxiliary_loss()
    loss.backward()
    assert [block.ffn.calls for block in model.stack.blocks] == [1 + checkpointing] * 2
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, len(context.records)


@pytest.mark.parametrize("layout", [Layout.full(2, 3), Layout.from_documents(torch.tensor([[1, 1, 2, 0]]))])
def test_recomputing_activations_changes_neither_loss_nor_gradients_nor_records(layout):
    loss, grads, records = train_step(False, layout)
    again, grads_again, records_again = train_step(True, layout)
    assert records == records_again == 2
    close(again, loss)
    assert grads.keys() == grads_again.keys()
    for name in grads:
        close(grads_again[name], grads[name])


# --- compiled

LAYOUTS = {
    "plain": Layout.full(2, 6),
    "padded": Layout.from_lengths([4, 6]),
    "packed": Layout.from_documents(torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3]])),
}


MIXED = {"position": "t5-bias", "norm_placement": "sandwich", "layers": [
    {"attention": {"name": "mla"}}, {"attention": {"name": "mha", "softcap": 5.0, "sinks": True, "qk_norm": "rmsnorm"}},
    {"attention": "linear", "position": "rope"}]}


@pytest.mark.parametrize("fields", [VARIANTS["pattern"], MIXED], ids=["pattern", "mixed"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@both_directions
@torch.no_grad()
def test_it_compiles_to_one_graph_for_each_combination_of_facts(layout, causal, fields):
    torch.compiler.reset()
    model, counter = build(causal=causal, **fields), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(2):
        row, context = tokens(2, 6), Context(layout.to("cpu"))
        close(compiled(row, context), model(row, context))
    assert counter.frame_count == 1


def test_a_compiled_model_trains_with_what_was_recorded():
    torch.compiler.reset()
    with recording():
        model = build(ffn="recording", causal=True)
    compiled, row = torch.compile(model, fullgraph=True, backend="eager"), tokens(1, 4)
    contexts = [Context(Layout.full(1, 4)) for _ in range(2)]
    compiled(row, contexts[0])
    model(row, contexts[1])
    close(contexts[0].auxiliary_loss(), contexts[1].auxiliary_loss())
    contexts[0].auxiliary_loss().backward()
    assert model.stack.blocks[0].ffn.scale.weight.grad.any()


@pytest.mark.parametrize(("position", "endless"), [("rope", True), ("learned", False)])
def test_positions_end_where_a_stack_says_so_wherever_it_stands_in_a_model(position, endless):
    model, other = build(position=position, causal=True), build(position="rope", causal=True)
    assert model.endless == endless
    other.inner = torch.nn.ModuleDict({"stack": model.stack})
    assert other.endless == endless


def test_a_model_in_training_mode_generates_without_dropout_and_stays_in_it():
    model = Transformer(TransformerConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, dropout=0.5, causal=True)).eval()
    prompt = torch.tensor([[3, 1, 4]])
    expected = model.generate(prompt, 8, do_sample=False)
    model.train()
    assert all(torch.equal(model.generate(prompt, 8, do_sample=False), expected) for _ in range(3))
    with pytest.raises(UserError):
        model.generate(prompt + 50, 8)
    assert all(module.training for module in model.modules())


def test_those_who_need_a_model_in_eval_mode_at_once_do_not_disturb_each_other():
    model = Transformer(TransformerConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1)).train()
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert all(module.training for module in model.modules())


def test_a_decoder_of_features_cannot_generate():
    model = Transformer(TransformerConfig(vocab_size=50, input_dim=3, output_dim=50, d_model=16, n_heads=2, n_layers=1,
                                          causal=True))
    with pytest.raises(UserError, match="reads features and writes tokens"):
        model.generate(torch.randn(1, 4, 3), 4)
