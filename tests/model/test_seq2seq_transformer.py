"""Encoder-decoder: who sees what, padding and packing, decoding through the state, embeddings, disk."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.drawing import FULL, LEFT, RIGHT, layouts, seeds
from miniformer.kernel import (
    Attention,
    Context,
    Entry,
    FeedForward,
    Layout,
    Memory,
    Registry,
    SpecError,
    StateError,
    UserError,
    current_registry,
    discover,
    use_registry,
)
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

V = 11
SMALL = {"vocab_size": V, "d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 16, "max_seq_len": 16}
VARIANTS = {
    "plain": {},
    "post-norm": {"pre_norm": False, "norm": "layernorm"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "grouped": {"attention": {"name": "mha", "n_kv_heads": 1}, "cross_attention": {"name": "mha", "n_kv_heads": 1}},
    "pattern": {"layers": [{"attention": {"name": "mha", "window": 2}}, {"position": "none", "ffn": "relu"}]},
    "separate": {"share_embeddings": False},
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)


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


class Blind(Attention):
    """Cannot look at another sequence."""

    def forward(self, x, context, state=None):
        return x


class Backward(Blind):
    """Only looks back."""

    causal_only = True
    cross = True


class Forgetful(Attention):
    """The mean of what may be seen of the memory; it keeps nothing of it between steps, and records a loss."""

    cross = True

    def forward(self, x, context, state=None):
        assert context.memory is not None and state is None
        context.record("looked", x.square().mean(), loss=True)
        allowed = context.mask().allowed
        weights = torch.ones(x.shape[0], x.shape[1], context.memory.hidden.shape[1]) if allowed is None else allowed[:, 0]
        weights = weights.to(x.dtype)
        return weights @ context.memory.hidden / weights.sum(-1, keepdim=True)


def ours():
    entries = [Entry(kind, cls.__name__.lower(), f"{__name__}:{cls.__name__}", "acme", "1.0") for kind, cls in
               [("ffn", Recording), ("attention", Blind), ("attention", Backward), ("attention", Forgetful)]]
    return use_registry(Registry([*discover(plugins="none"), *entries]))


def build(**fields):
    config = {**SMALL, **fields}
    if "layers" in fields:
        del config["n_layers"]
    model = Seq2SeqTransformer(TransformerConfig(**config)).double().eval()
    for parameter in model.parameters():  # far from its start, so that what is seen shows
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def tokens(*shape):
    return torch.randint(V, shape)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def changed(row, column):
    other = row.clone()
    other[:, column] = (other[:, column] + 1) % V
    return other


def moved(one, other):
    """Which positions of the first row differ."""
    return ((one - other)[0].abs().amax(dim=-1) > 1e-8).tolist()


# --- who sees what

@variants
@torch.no_grad()
def test_a_target_token_is_seen_by_itself_and_later_ones(fields):
    model, source, target = build(**fields), tokens(1, 4), tokens(1, 5)
    logits, hidden, _ = model(source, target)
    for column in range(5):
        again, hidden_again, _ = model(source, changed(target, column))
        assert moved(again, logits) == [t >= column for t in range(5)]
        assert torch.equal(hidden_again, hidden)


@variants
@torch.no_grad()
def test_a_source_token_is_seen_by_the_whole_target(fields):
    model, source, target = build(**fields), tokens(1, 4), tokens(1, 5)
    logits = model(source, target)[0]
    for column in range(4):
        assert moved(model(changed(source, column), target)[0], logits) == [True] * 5


@torch.no_grad()
def test_the_encoder_sees_its_whole_source():
    model, source = build(), tokens(1, 4)
    for column in range(4):
        assert moved(model.encode(changed(source, column)).hidden, model.encode(source).hidden) == [True] * 4


def test_no_gradient_goes_from_an_output_to_later_targets_or_from_the_encoder_to_any():
    model = build(share_embeddings=False)
    target_hidden, hidden, _ = model(tokens(1, 4), torch.tensor([[1, 2, 3, 4, 5]]), readout=lambda hidden, head: hidden)
    [of_source] = torch.autograd.grad(hidden.square().sum(), model.embedding.weight, allow_unused=True, retain_graph=True)
    assert of_source is None
    [of_third] = torch.autograd.grad(target_hidden[0, 2].square().sum(), model.embedding.weight)
    assert [bool(row.any()) for row in of_third[:6]] == [False, True, True, True, False, False]


def test_gradients_reach_every_parameter():
    model = build()
    model(tokens(2, 4), tokens(2, 3))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# --- padding and packing

@variants
@given(source=layouts(kinds=(FULL, LEFT, RIGHT), rows=2, max_length=5),
       target=layouts(kinds=(FULL, LEFT, RIGHT), rows=2, max_length=5), seed=seeds)
@settings(max_examples=8)
@torch.no_grad()
def test_padded_rows_give_what_each_gives_alone(fields, source, target, seed):
    torch.manual_seed(seed)
    model, x, y = build(**fields), tokens(*source.shape), tokens(*target.shape)
    logits, hidden, _ = model(x, y, Context(target), source_layout=source)
    for b in range(2):
        alone, alone_hidden, _ = model(x[b, source.real[b]][None], y[b, target.real[b]][None])
        close(hidden[b, source.real[b]], alone_hidden[0])
        close(logits[b, target.real[b]], alone[0])


@variants
@torch.no_grad()
def test_packed_documents_look_at_the_source_of_their_number(fields):
    model = build(**fields)
    sources, targets = [tokens(1, n) for n in (3, 1, 2)], [tokens(1, n) for n in (2, 4, 1)]
    numbers = [torch.tensor([[d for d, part in enumerate(parts, 1) for _ in range(part.shape[1])] + [0]])
               for parts in (sources, targets)]
    source, target = (Layout.from_documents(documents) for documents in numbers)
    logits = model(torch.cat([*sources, tokens(1, 1)], 1), torch.cat([*targets, tokens(1, 1)], 1), Context(target),
                   source_layout=source)[0]
    for number, (x, y) in enumerate(zip(sources, targets), 1):
        close(logits[target.documents == number], model(x, y)[0][0])


@torch.no_grad()
def test_what_padding_holds_changes_nothing():
    model, layout, source, target = build(), Layout.from_lengths([2, 4]), tokens(2, 4), tokens(2, 3)
    again = torch.where(layout.real, source, (source + 1) % V)
    close(model(source, target, source_layout=layout)[0], model(again, target, source_layout=layout)[0])


# --- decoding

@variants
@given(source=layouts(kinds=(FULL, LEFT, RIGHT), rows=2, max_length=4),
       target=layouts(kinds=(FULL, LEFT, RIGHT), rows=2, max_length=4), cuts=st.sets(st.integers(1, 6), max_size=3),
       extra=st.integers(0, 3), seed=seeds)
@settings(max_examples=8)
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(fields, source, target, cuts, extra, seed):
    torch.manual_seed(seed)
    model, (B, T) = build(**fields), target.shape
    follow = target.next_position()
    whole = target.append_columns(Layout(follow.positions + torch.arange(extra), follow.documents.expand(-1, extra)))
    x, y = tokens(*source.shape), tokens(B, T + extra)
    state = model.init_state(model.encode(x, source), T + extra)
    out = [model(state.memory, y[:, :T], Context(target), state)[0]]
    cuts = [T, *sorted(T + cut for cut in cuts if cut < extra), T + extra]
    out += [model(state.memory, y[:, a:b], state=state)[0] for a, b in pairwise(cuts) if b > a]
    close(torch.cat(out, dim=1)[whole.real], model(x, y, Context(whole), source_layout=source)[0][whole.real])


@pytest.mark.parametrize("name", [e.name for e in current_registry().entries("attention") if e.distribution == "miniformer"])
@torch.no_grad()
def test_every_attention_that_can_cross_decodes_as_it_computes(name):
    cls = current_registry().load("attention", name)
    if not cls.cross:
        with pytest.raises(SpecError, match="cannot look at another sequence"):
            build(cross_attention=name)
        return
    if cls(8, 2).rule is not None:
        with pytest.raises(SpecError, match="compares positions in one sequence"):
            build(cross_attention=name)
        return
    model, x, y, layout = build(cross_attention=name), tokens(2, 5), tokens(2, 4), Layout.from_lengths([5, 3])
    state = model.init_state(model.encode(x, layout), 4)
    steps = [model(state.memory, y[:, t:t + 1], state=state)[0] for t in range(4)]
    close(torch.cat(steps, dim=1), model(x, y, source_layout=layout)[0])


@torch.no_grad()
def test_keys_and_values_of_the_memory_are_computed_once():
    model, calls = build(), []
    for block in model.decoder.blocks:
        block.cross.kv.register_forward_hook(lambda *_: calls.append(1))
    state = model.init_state(model.encode(tokens(1, 5)), 4)
    for _ in range(4):
        model(state.memory, tokens(1, 1), state=state)
    assert len(calls) == 2, "one for each layer"


@torch.no_grad()
def test_a_cross_attention_that_keeps_nothing_looks_anew():
    with ours():
        model = build(cross_attention="forgetful")
    x, y, layout = tokens(2, 5), tokens(2, 4), Layout.from_lengths([5, 3])
    state = model.init_state(model.encode(x, layout), 4)
    steps = [model(state.memory, y[:, t:t + 1], state=state)[0] for t in range(4)]
    close(torch.cat(steps, dim=1), model(x, y, source_layout=layout)[0])


@pytest.mark.parametrize("fields", [*VARIANTS.values(), {"cross_attention": "forgetful"}], ids=[*VARIANTS, "forgetful"])
@torch.no_grad()
def test_a_reordered_state_goes_on_with_the_rows_and_sources_that_were_kept(fields):
    with ours():
        model = build(**fields)
    x, y, index = tokens(2, 4), tokens(2, 5), torch.tensor([1, 0, 1])
    layout = Layout.from_lengths([4, 2])
    state = model.init_state(model.encode(x, layout), 5)
    model(state.memory, y[:, :4], state=state)
    state.reorder(index)
    close(model(state.memory, y[index, 4:], state=state)[0], model(x, y, source_layout=layout)[0][index, 4:])


@torch.no_grad()
def test_a_truncated_state_forgets_targets_and_no_source():
    model, x, y = build(), tokens(2, 4), tokens(2, 5)
    state = model.init_state(model.encode(x), 6)
    model(state.memory, torch.cat([y[:, :2], tokens(2, 3)], dim=1), state=state)
    state.truncate(2)
    close(model(state.memory, y[:, 2:], state=state)[0], model(x, y)[0][:, 2:])


def test_a_state_tells_its_bytes():
    model = build()
    state = model.init_state(model.encode(tokens(3, 5)), 10)
    layers, rows, width, size = 2, 3, 8, 8
    assert state.nbytes == rows * width * size * (layers * 2 * 10 + layers * 2 * 5 + 5)


def test_a_state_of_another_source_is_refused():
    model = build()
    state = model.init_state(model.encode(tokens(1, 4)), 4)
    with pytest.raises(StateError, match="made for another source"):
        model(tokens(1, 4), tokens(1, 1), state=state)


# --- what it is made of

def test_the_return_is_logits_the_encoders_hidden_states_and_the_state_that_was_given():
    model, source, target = build(), tokens(2, 4), tokens(2, 3)
    logits, hidden, state = model(source, target)
    assert (logits.shape, hidden.shape, state) == ((2, 3, V), (2, 4, 8), None)
    memory = model.encode(source)
    given = model.init_state(memory, 3)
    again = model(memory, target, state=given)
    close(again[0], logits)
    assert again[2] is given


def test_the_readout_is_given_hidden_states_and_the_head():
    model, source, target = build(), tokens(2, 4), tokens(2, 3)
    hidden, head = model(source, target, readout=lambda hidden, head: (hidden, head))[0]
    close(head(hidden), model(source, target)[0])


def test_embeddings_are_shared_unless_told_otherwise():
    shared, separate = build(), build(share_embeddings=False)
    assert shared.source_embedding is shared.embedding
    assert separate.source_embedding is not separate.embedding
    assert shared.head.out.weight is shared.embedding.weight
    assert separate.head.out.weight is separate.embedding.weight
    assert sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters()) == V * 8


def test_a_source_may_be_features():
    model = build(input_dim=5, output_dim=V, head="lm")
    source = torch.randn(2, 4, 5, dtype=torch.float64)
    outputs = model(source, tokens(2, 3))
    assert outputs[0].shape == (2, 3, V)
    close(model.encode(source).hidden, outputs[1])


def test_a_causal_config_is_refused():
    with pytest.raises(SpecError, match="causal: the encoder of a seq2seq model sees its whole source"):
        build(causal=True)


def test_an_attention_that_only_looks_back_is_refused():
    with ours(), pytest.raises(SpecError, match="attention 'acme:backward' only looks back"):
        build(attention="backward")


@pytest.mark.parametrize(("value", "told"), [
    ({"name": "mha", "windw": 3}, "cross_attention mha.windw: "), (3, "cross_attention: expected a name"),
    ({"name": "mha", "n_kv_heads": 3}, "cross_attention mha: ")])
def test_an_error_of_the_cross_attention_names_its_field(value, told):
    with pytest.raises(SpecError, match=told):
        build(cross_attention=value)


def test_a_cross_attention_that_cannot_cross_is_refused():
    with ours(), pytest.raises(SpecError, match="cross_attention: attention 'acme:blind' cannot look at another sequence"):
        build(cross_attention="blind")


def test_a_cross_attention_that_compares_positions_is_refused():
    with pytest.raises(SpecError, match=r"Window\(size=4\) compares positions in one sequence"):
        build(cross_attention={"name": "mha", "window": 4})


def test_an_encoding_that_ends_refuses_longer_sequences_of_both():
    model = build(position="learned")
    for source, target in [(17, 2), (2, 17)]:
        with pytest.raises(SpecError, match="17 tokens: position 'learned' ends at max_seq_len = 16"):
            model(tokens(1, source), tokens(1, target))


def test_a_batch_without_source_is_refused():
    from miniformer.kernel import Batch
    with pytest.raises(UserError, match="this batch has no source"):
        build().read(Batch(tokens(1, 3), Layout.full(1, 3), {}))


def test_a_model_can_be_made_without_memory():
    with torch.device("meta"):
        model = Seq2SeqTransformer(TransformerConfig(**SMALL))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in build().named_parameters()}


# --- disk

@pytest.mark.parametrize("fields", [{}, {"share_embeddings": False}, {"head": {"name": "lm", "tied": False}}])
@torch.no_grad()
def test_a_saved_model_comes_back_the_same(tmp_path, fields):
    model, source, target = build(**fields).float(), tokens(2, 4), tokens(2, 3)
    model.save_pretrained(tmp_path / "model")
    again = Seq2SeqTransformer.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(source, target)[0], model(source, target)[0])
    assert (again.source_embedding is again.embedding) == model.config.share_embeddings
    assert (again.head.out.weight is again.embedding.weight) == ("head" not in fields)
    assert not again.training


@pytest.mark.parametrize(("saved", "loaded"), [(Seq2SeqTransformer, Transformer), (Transformer, Seq2SeqTransformer)])
def test_the_other_classs_folder_is_refused_with_the_name_of_its_own(tmp_path, saved, loaded):
    saved(TransformerConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"load it with {saved.__name__}, not with {loaded.__name__}"):
        loaded.from_pretrained(tmp_path)


# --- activation checkpointing, compilation

def train_step(checkpointing):
    torch.manual_seed(3)
    with ours():
        model = build(ffn="recording", cross_attention="forgetful", dropout=0.5, activation_checkpointing=checkpointing).train()
    context, source, target = Context(Layout.from_lengths([2, 3])), tokens(2, 4), tokens(2, 3)
    torch.manual_seed(4)
    loss = model(source, target, context)[0].square().mean() + context.auxiliary_loss()
    loss.backward()
    assert [block.ffn.calls for stack in (model.encoder, model.decoder) for block in stack.blocks] == [1 + checkpointing] * 4
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, len(context.records)


def test_recomputing_activations_changes_neither_loss_nor_gradients_nor_records():
    loss, grads, records = train_step(False)
    again, grads_again, records_again = train_step(True)
    assert records == records_again == 6, "feed-forwards of two layers of encoder and decoder, and two looks at the memory"
    close(again, loss)
    assert grads.keys() == grads_again.keys()
    for name in grads:
        close(grads_again[name], grads[name])


@torch.no_grad()
def test_it_compiles_to_one_graph():
    torch.compiler.reset()
    model, counter = build(**VARIANTS["pattern"]), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(2):
        source, target, layout = tokens(2, 4), tokens(2, 3), Layout.from_lengths([4, 2])
        close(compiled(source, target, source_layout=replace(layout))[0], model(source, target, source_layout=layout)[0])
    assert counter.frame_count == 1


def test_a_memory_may_be_given_in_place_of_its_source():
    model, source, target = build(), tokens(2, 4), tokens(2, 3)
    memory = model.encode(source)
    assert isinstance(memory, Memory)
    close(model(memory, target)[0], model(source, target)[0])


# --- a source of features

def reading(**fields):
    return Seq2SeqTransformer(TransformerConfig(**{"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 1, "input_dim": 3,
                                                   "output_dim": 20, "max_seq_len": 16, **fields})).eval()


def test_a_source_of_features_is_answered():
    one, source = reading(), torch.randn(2, 4, 3)
    written = one.generate(source, 5, do_sample=False)
    assert written.shape == (2, 5) and written.dtype == torch.long
    assert torch.equal(written, one.generate(source.double(), 5, do_sample=False, use_state=False))
    short = one.generate(source[:1, :2], 5, do_sample=False)
    padded = one.generate(source, 5, do_sample=False, layout=Layout.from_lengths([2, 4]))
    assert torch.equal(padded, torch.cat([short, written[1:]]))
    target = torch.cat([torch.full((2, 1), one.config.bos_id), written], dim=1)
    assert torch.equal(one(source, target)[0][:, :-1].argmax(dim=-1), written)


@pytest.mark.parametrize("source", [torch.ones(2, 4, dtype=torch.long), torch.randn(2, 4), torch.randn(2, 4, 5),
                                    torch.randn(2, 0, 3), torch.ones(2, 4, 3, dtype=torch.long), [[1, 2]]])
def test_what_is_no_source_of_features_is_told(source):
    with pytest.raises(UserError, match=r"reads features, so sources are (floats )?\[B, S, 3\]; found"):
        reading().generate(source, 4)


@pytest.mark.parametrize(("source", "text"), [
    (torch.tensor([[3, 20]]), "prompts: expected ids of the 20 tokens of the vocabulary; found 20"),
    (torch.tensor([[-1, 3]]), "found -1"), (torch.ones(1, 3), "token ids, whole numbers; found torch.float32"),
    ([[1, 2]], r"prompts are \[B, T\]; found list")])
def test_what_are_no_tokens_is_told(source, text):
    with pytest.raises(UserError, match=text):
        reading(input_dim=None).generate(source, 4)
