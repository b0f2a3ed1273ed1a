"""Generation: steps through the state say what whole passes say; filters and draws against direct computation."""

import math
from collections import Counter

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_streams import generate, stream

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.sampling import Sampling, Text
from miniformer.kernel.errors import SpecError, UserError
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

V = 19
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def model(**fields):
    torch.manual_seed(0)
    one = Transformer(TransformerConfig(**{
        "vocab_size": V, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 16, "max_seq_len": 64, "causal": True,
        "head": {"name": "lm", "tied": False}, **fields}))
    for parameter in one.parameters():  # logits far enough apart that ties and uniform draws show
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return one.double().eval()


MODEL = model()
# on a grid, so that no two are so near that rounding makes them equal
some_logits = st.lists(st.integers(-512, 512), min_size=1, max_size=9, unique=True).map(lambda ns: torch.tensor(ns) / 64)


def greedy(one, prompt, n):
    """The likeliest tokens, each from a whole pass over all before it."""
    tokens = prompt.tolist()
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(one(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rope"])
@pytest.mark.parametrize("attention", ["mha", {"name": "mha", "n_kv_heads": 1}, {"name": "mha", "window": 4}])
def test_greedy_tokens_are_the_same_with_and_without_state(attention, position):
    one = model(attention=attention, position=position)
    expected = greedy(one, PROMPT, 20)
    assert generate(one, PROMPT, 20, temperature=0).tolist() == expected
    assert generate(one, PROMPT, 20, temperature=0, use_state=False).tolist() == expected
    assert len(set(expected)) > 3, "tokens that differ, or the test sees nothing"


def test_draws_are_the_same_with_and_without_state():
    assert generate(MODEL, PROMPT, 20, seed=1).tolist() == generate(MODEL, PROMPT, 20, seed=1, use_state=False).tolist()


def test_layers_of_different_kinds_generate_with_state():
    one = model(layers=[{"attention": {"name": "mha", "window": 3}, "position": "none"}, {"attention": "mha"}])
    assert generate(one, PROMPT, 20, temperature=0).tolist() == greedy(one, PROMPT, 20)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-6}, {"temperature": 1e-300}])
def test_where_one_token_is_left_it_is_the_likeliest(settings):
    assert generate(MODEL, PROMPT, 10, **settings).tolist() == greedy(MODEL, PROMPT, 10)


def test_more_than_all_tokens_are_all_tokens():
    assert generate(MODEL, PROMPT, 10, top_k=V + 5, seed=1).tolist() == generate(MODEL, PROMPT, 10, seed=1).tolist()


def test_a_seed_makes_draws_repeatable():
    once, again, other = (generate(MODEL, PROMPT, 20, temperature=2.0, seed=seed).tolist() for seed in (1, 1, 2))
    assert once == again != other


def test_without_a_seed_draws_follow_torchs_own():
    torch.manual_seed(3)
    once = generate(MODEL, PROMPT, 20, temperature=2.0).tolist()
    again = generate(MODEL, PROMPT, 20, temperature=2.0).tolist()
    torch.manual_seed(3)
    assert once == generate(MODEL, PROMPT, 20, temperature=2.0).tolist() != again


def test_the_end_token_ends_a_text_and_is_no_part_of_it():
    whole = greedy(MODEL, PROMPT, 20)[len(PROMPT):]
    end = next(token for i, token in enumerate(whole) if i > 2 and token not in whole[:i])
    assert list(stream(MODEL, PROMPT, 20, temperature=0, eos_id=end)) == whole[:whole.index(end)]


def test_an_end_token_in_the_prompt_ends_nothing():
    assert len(generate(MODEL, PROMPT, 3, temperature=0, eos_id=int(PROMPT[0]))) > len(PROMPT)


def test_no_new_tokens_are_the_prompt():
    assert generate(MODEL, PROMPT, 0).tolist() == PROMPT.tolist()


def test_what_is_generated_is_of_the_prompts_kind():
    assert generate(MODEL, PROMPT.int(), 2).dtype == torch.int32


def test_tokens_come_one_by_one():
    calls = []
    hook = MODEL.register_forward_hook(lambda *_: calls.append(1))
    try:
        next(stream(MODEL, PROMPT, 50, temperature=0))
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("use_state", [True, False])
def test_positions_can_be_used_to_the_last(use_state):
    """The last token that is generated is not looked at, so it needs no position."""
    one = model(position="learned", max_seq_len=8)
    assert len(generate(one, PROMPT, 4, temperature=0, use_state=use_state)) == 9
    with pytest.raises(SpecError, match="ends at max_seq_len = 8"):
        generate(one, PROMPT, 5, temperature=0, use_state=use_state)


def test_a_model_that_sees_later_tokens_cannot_generate():
    with pytest.raises(UserError, match="causal: false"):
        generate(model(causal=False), PROMPT, 1)


@pytest.mark.parametrize("prompt", [torch.tensor([], dtype=torch.long), PROMPT[None]])
def test_a_prompt_is_a_row_of_tokens(prompt):
    with pytest.raises(UserError, match="a prompt is at least one token"):
        generate(MODEL, prompt, 1)


@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"temperature": -0.1}, {"temperature": math.nan},
                                      {"top_k": -1}, {"top_p": -0.1}, {"top_p": 1.1}, {"temperature": None},
                                      {"temperature": "hot"}, {"top_k": 2.5}, {"top_k": None}, {"top_p": "all"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        generate(MODEL, PROMPT, **{"max_new_tokens": 1, **settings})


def choose(logits, temperature, top_k, top_p, generator):
    return Sampling(temperature, top_k, top_p)(logits, Text([]), generator)


def kept(logits, temperature, top_k, top_p, draws=300):
    """The tokens that are ever drawn."""
    generator = torch.Generator().manual_seed(0)
    return {choose(logits, temperature, top_k, top_p, generator) for _ in range(draws)}


def naive_kept(logits, temperature, top_k, top_p):
    """The tokens that may be drawn, likeliest first: at most k, and no more than it takes to have p."""
    weights = [math.exp(float(x) / temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[:top_k or len(weights)]
    total, taken, found = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if found and taken >= top_p * total:
            break
        found.append(i)
        taken += weights[i]
    return found


@settings(max_examples=depth.examples(60), deadline=None)
@given(some_logits, st.floats(0.3, 3), st.integers(0, 10), st.floats(0, 1))
def test_only_what_the_filters_keep_is_drawn(logits, temperature, top_k, top_p):
    # a hair more or less probability, so that rounding decides nothing
    more = naive_kept(logits, temperature, top_k, min(1, top_p + 1e-5))
    assert kept(logits, temperature, top_k, top_p, draws=20) <= set(more)


@pytest.mark.parametrize(("top_k", "top_p", "expected"), [
    (0, 1.0, {0, 1, 2, 3}), (2, 1.0, {1, 3}), (0, 0.6, {1, 3}), (0, 0.1, {1}), (3, 0.6, {1, 3}), (1, 1.0, {1})])
def test_all_that_the_filters_keep_is_drawn(top_k, top_p, expected):
    logits = torch.tensor([0.1, 0.4, 0.15, 0.35]).log()
    assert kept(logits, 1.0, top_k, top_p) == expected == set(naive_kept(logits, 1.0, top_k, top_p))


def test_no_more_is_kept_than_it_takes_to_have_the_probability():
    """Two of four equal tokens have one half; a third would be more than was asked for."""
    assert len(kept(torch.zeros(4), 1.0, 0, 0.5)) == 2


def test_temperature_zero_takes_the_likeliest():
    assert kept(torch.tensor([1.0, 1.1, 0.9]), 0, 0, 1.0) == {1}


def test_a_token_that_is_forbidden_is_never_drawn():
    assert kept(torch.tensor([0.0, -math.inf, 0.0]), 5.0, 0, 1.0) == {0, 2}


def test_choosing_changes_no_logits():
    logits = torch.tensor([1.0, 2.0, 3.0])
    choose(logits, 0.5, 2, 0.5, None)
    assert logits.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_distributed_as_softmax(temperature):
    """Chi-square with 5 degrees of freedom; beyond 20.5 is one seed in a thousand, and the seed is fixed."""
    logits, n = torch.tensor([0.0, 0.5, 1.0, -1.0, -0.5, 0.2]), 4000
    generator = torch.Generator().manual_seed(0)
    counts = Counter(choose(logits, temperature, 0, 1.0, generator) for _ in range(n))
    expected = [n * float(p) for p in (logits / temperature).softmax(dim=0)]
    assert sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected)) < 20.5


def test_what_is_kept_is_drawn_in_proportion():
    logits, n = torch.tensor([0.5, 0.3, 0.2]).log(), 4000
    generator = torch.Generator().manual_seed(0)
    counts = Counter(choose(logits, 1.0, 2, 1.0, generator) for _ in range(n))
    assert counts[0] / n == pytest.approx(5 / 8, abs=0.03)


def test_an_encoder_decoder_answers_and_does_not_repeat_its_prompt():
    one = answering()
    with torch.no_grad():
        written = [one.config.bos_id]
        for _ in range(10):
            written.append(int(one(PROMPT[None], torch.tensor([written]))[0][0, -1].argmax()))
    assert list(stream(one, PROMPT, 10, temperature=0)) == written[1:]
    assert generate(one, PROMPT, 10, temperature=0, use_state=False).tolist() == written[1:]


def answering():
    torch.manual_seed(0)
    one = Seq2SeqTransformer(TransformerConfig(vocab_size=V, d_model=16, n_heads=4, n_layers=2, d_ff=16, max_seq_len=64))
    for parameter in one.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return one.double().eval()


def test_a_penalty_keeps_a_text_from_repeating_itself():
    plain = generate(MODEL, PROMPT, 30, temperature=0).tolist()
    other = generate(MODEL, PROMPT, 30, temperature=0, repetition_penalty=5.0).tolist()
    assert len(set(other)) > len(set(plain))
