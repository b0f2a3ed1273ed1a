"""How a token is chosen, and the loop over rows: greedy, draws and ends of each row are its own."""

import gc
import math

import pytest
import torch
from depth import is_thorough
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.loop import decode, start_texts
from miniformer.decoding.sampling import Sampling, Text
from miniformer.kernel import Attention, Entry, Layout, Registry, SpecError, UserError, discover, use_registry
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

V = 19
SIZES = {"vocab_size": V, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 16, "max_seq_len": 64,
         "head": {"name": "lm", "tied": False}}


class Mean(Attention):
    """The mean of what came before; keeps no state."""

    causal_only = True

    def forward(self, x, context, state=None):
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril()
        return allowed @ x / allowed.sum(-1, keepdim=True)


def apart(model):
    """Logits far enough apart that ties and uniform draws show."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


torch.manual_seed(0)
DECODER = apart(Transformer(TransformerConfig(**SIZES, causal=True)))
BOTH = apart(Seq2SeqTransformer(TransformerConfig(**SIZES)))
MODELS = pytest.mark.parametrize("model", [DECODER, BOTH], ids=["transformer", "seq2seq"])
PROMPTS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])


@torch.no_grad()
def whole_pass(model, row, written):
    """Logits of the next token, from one pass over everything."""
    if model is DECODER:
        return model(torch.tensor([[*row, *written]]))[0, -1]
    return model(torch.tensor([row]), torch.tensor([[model.config.bos_id, *written]]))[0][0, -1]


def naive(model, row, n, penalty=1.0):
    """The likeliest tokens, each from a whole pass."""
    written = []
    for _ in range(n):
        logits = whole_pass(model, row, written)
        for token in {*(row if model is DECODER else [model.config.bos_id]), *written}:
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        written.append(int(logits.argmax()))
    return written


def new(model, prompts=PROMPTS, n=12, **given):
    """The new tokens of each row."""
    return model.generate(prompts, n, **given)[:, 0 if model.has_source else prompts.shape[1]:].tolist()


@MODELS
@pytest.mark.parametrize("use_state", [True, False])
def test_greedy_rows_are_those_of_whole_passes_over_each_alone(model, use_state):
    found = new(model, do_sample=False, use_state=use_state)
    assert found == [naive(model, row, 12) for row in PROMPTS.tolist()]
    assert len({tuple(row) for row in found}) == 3, "rows that differ, or the test sees nothing"


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_state", [True, False])
def test_padded_prompts_go_on_as_they_do_alone(model, side, use_state):
    layout = Layout.from_lengths([5, 2, 3], side=side)
    found = new(model, layout=layout, do_sample=False, repetition_penalty=1.3, use_state=use_state)
    assert found == [naive(model, row[real].tolist(), 12, penalty=1.3) for row, real in zip(PROMPTS, layout.real)]


@MODELS
@pytest.mark.parametrize("use_state", [True, False])
def test_a_row_draws_as_it_does_alone_with_its_own_seed(model, use_state):
    together = new(model, temperature=2.0, seed=7, use_state=use_state)
    assert together == [new(model, row[None], temperature=2.0, seed=7 + b)[0] for b, row in enumerate(PROMPTS)]
    assert together != new(model, temperature=2.0, seed=8)


@MODELS
def test_a_row_that_ended_is_filled_with_the_end_and_disturbs_no_other(model):
    whole = new(model, do_sample=False)
    end = next(token for t, token in enumerate(whole[1]) if t > 1 and token not in whole[1][:t])
    lengths = [row.index(end) if end in row else None for row in whole]
    found = new(model, do_sample=False, eos_id=end)
    for row, ended, length in zip(whole, found, lengths):
        assert ended == (row if length is None else row[:length] + [end] * (12 - length))
    assert any(length is not None for length in lengths) and None in lengths


@MODELS
def test_it_stops_when_every_row_has_ended(model):
    end = naive(model, PROMPTS[0].tolist(), 12)
    last = next(t for t, token in enumerate(end) if t > 0 and token not in end[:t])
    assert new(model, PROMPTS[:1], do_sample=False, eos_id=end[last]) == [end[:last + 1]]


@MODELS
def test_the_end_is_the_configs_unless_it_is_told_and_minus_one_is_none(model):
    whole = naive(model, PROMPTS[0].tolist(), 12)
    config = model.config
    try:
        model.config = config.with_fields(eos_id=whole[1])
        stop = whole.index(whole[1]) + 1
        assert new(model, PROMPTS[:1], do_sample=False) == [whole[:stop]]
        assert new(model, PROMPTS[:1], do_sample=False, eos_id=-1) == [whole]
    finally:
        model.config = config


@MODELS
def test_the_penalty_is_for_tokens_that_were_seen(model):
    found = new(model, do_sample=False, repetition_penalty=1.7)
    assert found == [naive(model, row, 12, penalty=1.7) for row in PROMPTS.tolist()]
    assert found != new(model, do_sample=False)


@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=8), st.floats(0.2, 4), st.data())
def test_a_penalty_divides_what_is_above_zero_and_multiplies_what_is_below(values, penalty, data):
    seen = data.draw(st.lists(st.integers(0, len(values) - 1)))
    expected = [(x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(values)]
    logits = torch.tensor(values, dtype=torch.float64)
    chosen = Sampling(temperature=0, repetition_penalty=penalty)(logits, Text(seen), None)
    assert expected[chosen] == pytest.approx(max(expected))
    assert logits.tolist() == values


def test_a_penalty_makes_a_negative_logit_less_likely_too():
    assert Sampling(temperature=0, repetition_penalty=3.0)(torch.tensor([-1.0, -2.0]), Text([0]), None) == 1


@MODELS
def test_defaults_draw_from_the_likeliest_tokens_that_make_up_nine_tenths(model):
    torch.manual_seed(1)
    found = model.generate(PROMPTS[:1], 6)
    torch.manual_seed(1)
    same = model.generate(PROMPTS[:1], 6, temperature=1.0, top_k=50, top_p=0.9, do_sample=True, repetition_penalty=1.0)
    assert found.tolist() == same.tolist()
    drawn = {new(model, PROMPTS[:1], 1, seed=seed)[0][0] for seed in range(60)}
    p = whole_pass(model, PROMPTS[0].tolist(), []).softmax(-1)
    order, kept, total = p.argsort(descending=True).tolist(), set(), 0.0
    for token in order:
        if total >= 0.9:
            break
        kept.add(token)
        total += float(p[token])
    assert drawn <= kept and len(drawn) > 1


@MODELS
def test_a_hundred_tokens_are_written_unless_told_otherwise(model):
    out = model.generate(PROMPTS[:1], do_sample=False)
    assert out.shape[1] == 100 + (0 if model.has_source else 5)


@MODELS
def test_what_is_written_can_be_trained_on(model):
    """Tokens made in inference mode could not be: their embedding has a gradient."""
    written = model.generate(PROMPTS, 3, do_sample=False)
    assert written.dtype == PROMPTS.dtype and not written.is_inference()


@MODELS
def test_no_new_tokens_are_none(model):
    assert new(model, n=0) == [[], [], []]


@MODELS
def test_positions_can_be_used_to_the_last(model):
    """The last token that is written is not looked at, so it needs no position."""
    one = apart(type(model)(model.config.with_fields(position="learned", max_seq_len=8)))
    most = 8 if model.has_source else 4
    for use_state in (True, False):
        assert len(new(one, n=most, do_sample=False, use_state=use_state)[0]) == most
        with pytest.raises(SpecError, match="ends at max_seq_len = 8"):
            new(one, n=most + 1, do_sample=False, use_state=use_state)


def test_an_answer_starts_from_the_configs_token_or_the_one_that_is_given():
    others = [BOTH.generate(PROMPTS, 6, do_sample=False, bos_id=i).tolist() for i in range(4)]
    assert BOTH.generate(PROMPTS, 6, do_sample=False).tolist() == others[1] != others[2]
    with pytest.raises(UserError, match="bos_id: expected one of the 19 tokens; found 19"):
        BOTH.generate(PROMPTS, 1, bos_id=V)


def test_a_decoder_goes_on_from_its_prompt_and_from_no_token():
    with pytest.raises(UserError, match="bos_id: this model goes on from its prompt"):
        DECODER.generate(PROMPTS, 1, bos_id=1)


def test_layers_that_keep_no_state_write_by_whole_passes():
    registry = Registry([*discover(), Entry("attention", "mean", f"{__name__}:Mean", "acme", "1")])
    with use_registry(registry):
        model = apart(Transformer(TransformerConfig(**SIZES, causal=True, attention="mean")))
    assert new(model, n=5, do_sample=False) == new(model, n=5, do_sample=False, use_state=False)


def test_an_encoder_cannot_write():
    with pytest.raises(UserError, match="causal: false"):
        Transformer(TransformerConfig(**SIZES)).generate(PROMPTS)


def test_a_model_with_other_outputs_than_tokens_cannot_write():
    model = Transformer(TransformerConfig(**{**SIZES, "head": "classification"}, causal=True, output_dim=3))
    with pytest.raises(UserError, match="3 outputs and a vocabulary of 19"):
        model.generate(PROMPTS)


@MODELS
@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"temperature": -0.1}, {"temperature": math.nan}, {"top_k": -1},
                                      {"top_p": -0.1}, {"top_p": 1.1}, {"repetition_penalty": 0.0}])
def test_settings_out_of_range_are_refused(model, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: .*found"):
        model.generate(PROMPTS, **settings)


@MODELS
@pytest.mark.parametrize("prompt", [torch.zeros(1, 0, dtype=torch.long), PROMPTS[0]])
def test_prompts_are_rows_of_tokens(model, prompt):
    with pytest.raises(UserError, match="a prompt is at least one token"):
        model.generate(prompt)


@MODELS
def test_a_layout_of_prompts_has_one_text_in_each_row(model):
    with pytest.raises(UserError, match="several texts in a row"):
        model.generate(PROMPTS, layout=Layout.from_documents(torch.tensor([[1, 1, 2, 2, 2]] * 3)))
    with pytest.raises(UserError, match=r"their shape \[3, 5\]; found \[3, 4\]"):
        model.generate(PROMPTS, layout=Layout.full(3, 4))


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_may_be_read_in_pieces(model, side, monkeypatch):
    layout = Layout.from_lengths([5, 2, 3], side=side)
    whole, sizes = new(model, layout=layout, do_sample=False), []
    monkeypatch.setattr("miniformer.decoding.loop.PREFILL", 2)
    hook = model.register_forward_hook(lambda _, args, __: sizes.append(args[int(model.has_source)].shape[1]))
    try:
        assert new(model, layout=layout, do_sample=False) == whole
    finally:
        hook.remove()
    assert sizes == ([1] * 12 if model.has_source else [2, 2, 1] + [1] * 11)


@MODELS
@pytest.mark.parametrize("use_state", [True, False])
def test_rows_that_have_ended_are_not_computed_any_more(model, use_state):
    feed = model.feed(PROMPTS, 6, use_state=use_state)
    rows, sizes = start_texts(feed, [2, 6, 4], [None] * 3), []
    with torch.no_grad():
        for running in decode(feed, rows, Sampling(temperature=0)):
            sizes.append(len(running))
    assert sizes == [3, 3, 2, 2, 1, 1]
    assert [row.new for row in rows] == [naive(model, prompt, n) for prompt, n in zip(PROMPTS.tolist(), [2, 6, 4])]
    assert [row.finish for row in rows] == ["length"] * 3


@MODELS
@torch.no_grad()
def test_log_probabilities_are_the_models_own(model):
    feed = model.feed(PROMPTS[:1], 6)
    [row] = start_texts(feed, [6], [3])
    for _ in decode(feed, [row], Sampling(temperature=3.0, top_k=9, repetition_penalty=2.0)):
        pass
    expected = [float(whole_pass(model, PROMPTS[0].tolist(), row.new[:i]).log_softmax(-1)[token])
                for i, token in enumerate(row.new)]
    assert row.logprobs == pytest.approx(expected)


@MODELS
@pytest.mark.parametrize("use_state", [True, False])
@torch.no_grad()
def test_a_feed_goes_back_and_on_in_other_rows(model, use_state):
    feed, more = model.feed(PROMPTS, 9, use_state=use_state), torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    feed(feed.start)
    length, every = feed.length, feed.logits_after_each(more)
    feed.truncate(length + 1)
    feed.keep([2, 0, 2])
    again = feed.logits_after_each(more[[2, 0, 2], 1:])
    torch.testing.assert_close(again, every[[2, 0, 2], 1:])
    torch.testing.assert_close(every[1, -1], whole_pass(model, PROMPTS[1].tolist(), more[1].tolist()))


def live_bytes():
    """Of all tensors that anything refers to."""
    gc.collect()
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects()
                if type(t) is torch.Tensor and t.device.type == "cpu"}.values())


@MODELS
@torch.no_grad()
def test_memory_does_not_grow_with_steps_beyond_the_state_and_its_layout(model):
    feed = model.feed(PROMPTS, 300)
    steps = decode(feed, start_texts(feed, [300] * 3, [None] * 3), Sampling())
    for _ in range(20):
        next(steps)
    before, columns, state = live_bytes(), feed.length, feed.state.nbytes
    for _ in range(250):
        next(steps)
    grown = live_bytes() - before
    assert feed.state.nbytes == state
    assert grown <= (feed.length - columns) * len(PROMPTS) * 2 * 8, "a position and a document for each token"


@pytest.mark.slow
@torch.no_grad()
def test_the_state_of_windows_does_not_grow_with_the_text():
    """Thousands of tokens in the memory of 100, but for where they sit."""
    total = 3000 if is_thorough() else 800
    model = apart(Transformer(TransformerConfig(**{**SIZES, "max_seq_len": 3100}, causal=True,
                                                attention={"name": "mha", "window": 32})))
    feed = model.feed(PROMPTS, total)
    steps = decode(feed, start_texts(feed, [total] * 3, [0] * 3), Sampling())
    for _ in range(100):
        next(steps)
    before, columns, state = live_bytes(), feed.length, feed.state.nbytes
    assert state == 2 * 3 * 95 * (2 * 16 * 8 + 8), "of 32 + 63 columns keys and values, and the number of each"
    for _ in range(total - 110):
        next(steps)
    assert feed.state.nbytes == state
    assert live_bytes() - before <= (feed.length - columns) * len(PROMPTS) * 2 * 8
