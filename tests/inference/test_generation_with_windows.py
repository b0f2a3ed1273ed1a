"""Long texts of models with windows: what is written is the same whatever is remembered of it, in every way of writing."""

import pytest
import torch
from depth import every, rarely
from writing_models import BYTES, writing

from miniformer.decoding.beam_search import Beams
from miniformer.decoding.loop import start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.decoding.speculative import speculate
from miniformer.decoding.window_state import REWIND, WindowState
from miniformer.inference.engine import Engine
from miniformer.kernel import Layout, UserError
from miniformer.model.attention import KeyValueState, MultiHeadAttention

N = 150  # more than any window here, and the columns that go with it
NARROW, WIDE = {"name": "mha", "window": 3}, {"name": "mha", "window": 40, "n_kv_heads": 1}
GREEDY, BOLD = Sampling(temperature=0, repetition_penalty=1.1), Sampling(temperature=1.2)
PATTERN = [{"attention": NARROW}, {"attention": "mha"}, {"attention": WIDE}]
MODELS = {
    "narrow": writing(attention=NARROW, max_seq_len=400), "pattern": writing(layers=PATTERN, max_seq_len=400, n_layers=3),
    "alibi": writing(layers=PATTERN, n_layers=3, position="alibi"), "t5-bias": writing(attention=WIDE, position="t5-bias"),
    "encoder-decoder": writing(True, layers=PATTERN, n_layers=3, position="t5-bias")}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
PROMPTS = ["some text", "é", "naïve café, 東京, 🙂 and " * 6]


@pytest.fixture
def holding_everything(monkeypatch):
    """Attentions whose state holds every column."""
    def hold(self, batch, capacity):
        return KeyValueState(self.kv.weight.new_empty(2, batch, self.n_kv_heads, capacity, self.d_head))

    return lambda: monkeypatch.setattr(MultiHeadAttention, "init_state", hold)


def told(answers):
    return [(answer.tokens, answer.finish_reason, [round(one, 6) for one in answer.logprobs]) for answer in answers]


@pytest.mark.parametrize(("name", "side"), [
    (name, side) if (m + s) % 2 == 0 else rarely((name, side))
    for m, name in enumerate(MODELS) for s, side in enumerate(("left", "right"))])
@torch.no_grad()
def test_rows_of_any_length_are_written_as_by_a_state_of_everything_and_by_whole_passes(name, side, holding_everything):
    model, layout = MODELS[name], Layout.from_lengths([120, 3, 40], side=side)
    prompts = torch.randint(3, 200, layout.shape).where(layout.real, torch.tensor(0))
    state = model.feed(prompts, N, layout=layout).state
    assert any(type(layer) is WindowState for layer in state.layers)
    given = {"do_sample": False, "layout": layout, "repetition_penalty": 1.1, "eos_id": -1}
    found = model.generate(prompts, N, **given)
    assert len(found[0].unique()) > 10, "tokens that differ, or the test sees nothing"
    assert found[:, :-40].equal(model.generate(prompts, N - 40, **given, use_state=False))
    holding_everything()
    assert {type(layer) for layer in model.feed(prompts, N, layout=layout).state.layers} == {KeyValueState}
    assert found.equal(model.generate(prompts, N, **given))


@models
@torch.no_grad()
def test_an_engine_writes_drawn_texts_that_join_and_leave_and_searches(model, holding_everything):
    prompts = [*PROMPTS, *(f"{prompt} {n}" for n in range(3) for prompt in PROMPTS)]

    def write():
        engine = Engine(model, BYTES, batch_size=4)
        drawn = told(engine.generate(prompts, BOLD, seed=3, max_new_tokens=N))
        return drawn, [told(answers) for answers in engine.search(PROMPTS, Beams(3), max_new_tokens=110)]

    found = write()
    assert {len(tokens) for tokens, _, _ in found[0]} > {N}, "some end early, and others take their places"
    holding_everything()
    assert found == write()


@pytest.mark.parametrize(("name", "ahead"), every(
    2, [(name, ahead) for name in ("narrow", "pattern", "encoder-decoder") for ahead in (1, 6, REWIND)]))
@torch.no_grad()
def test_a_draft_may_be_wrong_about_as_many_tokens_as_a_state_can_go_back(name, ahead):
    model, torn = MODELS[name], writing(name == "encoder-decoder", **{
        "max_seq_len": 400, **({"attention": NARROW} if name == "narrow" else {"layers": PATTERN, "n_layers": 3}),
        **({"position": "t5-bias"} if name == "encoder-decoder" else {})})
    for parameter in torn.parameters():
        parameter += 0.03 * torch.randn_like(parameter)
    feeds = [one.feed(torch.tensor([[5, 6, 7]]), N) for one in (model, torn)]
    [row] = start_texts(feeds[0], [N], [None])
    for _ in speculate(*feeds, row, GREEDY, ahead):
        pass
    expected = model.generate(torch.tensor([[5, 6, 7]]), N, do_sample=False, repetition_penalty=1.1, eos_id=-1)
    assert row.new == expected[0, -N:].tolist()


def test_a_draft_that_is_asked_for_more_is_refused_before_anything_is_written():
    feeds = [MODELS["narrow"].feed(torch.tensor([[5, 6, 7]]), N) for _ in range(2)]
    [row] = start_texts(feeds[0], [N], [None])
    refused = f"ahead: at most {REWIND} tokens, by which WindowState can go back; found {REWIND + 1}"
    with pytest.raises(UserError, match=refused):
        next(speculate(*feeds, row, GREEDY, REWIND + 1))
    assert row.new == []
