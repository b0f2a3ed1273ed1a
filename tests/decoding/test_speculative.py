"""Speculative decoding gives what decoding gives: greedily the same text, and drawn the same distribution."""

from collections import Counter
from itertools import product

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_models import BYTES, letters, writing

from miniformer.decoding.loop import decode, start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.decoding.speculative import accept, speculate
from miniformer.inference.engine import Engine
from miniformer.kernel import UserError

TOKENIZER = letters(("<pad>", "<bos>", "<eos>", "a"))
V, END = 4, 2
SIZES = {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8}
GREEDY = Sampling(temperature=0)


def pair(has_source, tokenizer=BYTES, **fields):
    """A model, and a small one that sometimes agrees: its weights are near to the model's."""
    model, draft = writing(has_source, tokenizer, **fields), writing(has_source, tokenizer, **fields)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return model, draft


PAIRS = {"decoder": pair(False), "encoder-decoder": pair(True)}
pairs = pytest.mark.parametrize(("model", "draft"), PAIRS.values(), ids=PAIRS)


@torch.no_grad()
def speculated(model, draft, prompt, limit, sampling, ahead, seed=None, use_state=True, eos_id=None):
    feeds = [one.feed(torch.tensor([prompt]), limit, use_state=use_state) for one in (model, draft)]
    [row] = start_texts(feeds[0], [limit], [seed])
    for _ in speculate(*feeds, row, sampling, ahead, eos_id):
        pass
    return row


@pairs
@settings(max_examples=depth.examples(20))
@given(st.lists(st.integers(0, BYTES.vocab_size - 1), min_size=1, max_size=8), st.integers(0, 25), st.integers(1, 6),
       st.booleans())
def test_greedy_it_is_the_same_text_with_the_same_log_probabilities(model, draft, prompt, limit, ahead, use_state):
    sampling = Sampling(temperature=0, repetition_penalty=1.2)
    found = speculated(model, draft, prompt, limit, sampling, ahead, use_state=use_state, eos_id=7)
    with torch.no_grad():
        feed = model.feed(torch.tensor([prompt]), limit)
        [row] = start_texts(feed, [limit], [None])
        for _ in decode(feed, [row], sampling, 7):
            pass
    assert (found.new, found.finish) == (row.new, row.finish)
    assert found.logprobs == pytest.approx(row.logprobs)


@pairs
def test_a_draft_that_agrees_saves_passes(model, draft):
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        Engine(model, BYTES, draft=model).generate(["some text"], GREEDY, max_new_tokens=20).__next__()
        both = len(calls)  # its own draft: 4 times 4 passes ahead and 1 that checks them and gives a fifth; 1 for the prompt
        del calls[:]
        Engine(model, BYTES, draft=draft).generate(["some text"], GREEDY, max_new_tokens=20).__next__()
    finally:
        hook.remove()
    assert both == 4 * 5 + 1 and len(calls) < 20


@given(st.lists(st.integers(0, 20), min_size=5, max_size=5).filter(any), st.lists(st.integers(0, 20), min_size=5, max_size=5
                                                                                   ).filter(any))
@settings(max_examples=5)
def test_what_is_accepted_or_drawn_instead_has_the_distribution_that_is_wanted(wanted, chances):
    """Chi-square over 4,000 draws; of 4 degrees of freedom beyond 23.5 is one in ten thousand."""
    p, q = (torch.tensor(weights, dtype=torch.float64) / sum(weights) for weights in (wanted, chances))
    generator = torch.Generator().manual_seed(0)
    found = Counter(accept(p, q, int(torch.multinomial(q, 1, generator=generator)), generator)[0] for _ in range(4000))
    assert not any(p[token] == 0 for token in found)
    assert sum((found[i] - 4000 * x) ** 2 / (4000 * x) for i, x in enumerate(p.tolist()) if x) < 23.5


@pytest.mark.parametrize("has_source", [False, depth.rarely(True)])
@torch.no_grad()
def test_texts_have_the_distribution_that_the_model_alone_gives_them(has_source):
    """Chi-square over texts of 3 tokens, against the product of the model's own probabilities."""
    model, draft = pair(has_source, TOKENIZER, **SIZES)
    sampling, n = Sampling(temperature=1.5, top_k=3, presence_penalty=0.3), 1200 if depth.is_thorough() else 500
    found = Counter(tuple(speculated(model, draft, [3, 1], 3, sampling, 2, seed).new) for seed in range(n))
    statistic, freedom = 0.0, -1
    for text in product(range(V), repeat=3):
        p = 1.0
        for i, token in enumerate(text):
            logits = (model(torch.tensor([[3, 1]]), torch.tensor([[1, *text[:i]]]))[0] if has_source
                      else model(torch.tensor([[3, 1, *text[:i]]])))[0, -1]
            seen = torch.tensor([0.3 * (j in text[:i]) for j in range(V)])
            logits = (logits - seen) / 1.5
            p *= float(logits.masked_fill(logits < logits.topk(3).values[-1], -torch.inf).softmax(0)[token])
        if n * p >= 5:
            statistic, freedom = statistic + (found[text] - n * p) ** 2 / (n * p), freedom + 1
        assert p > 0 or not found[text]
    assert freedom > 4 and statistic < freedom + 4 * (2 * freedom) ** 0.5, "mean and four deviations of a chi-square"


@pairs
def test_an_engine_with_a_draft_writes_and_streams(model, draft):
    plain, helped = Engine(model, BYTES), Engine(model, BYTES, draft=draft)
    prompts = ["some", "naïve text", ""]
    given = {"max_new_tokens": 12, "stop": [next(plain.generate(["some"], GREEDY)).text[3:5]]}
    expected = [(answer.text, answer.tokens, answer.finish_reason) for answer in plain.generate(prompts, GREEDY, **given)]
    assert [(a.text, a.tokens, a.finish_reason) for a in helped.generate(prompts, GREEDY, **given)] == expected
    assert "".join(helped.stream("some", GREEDY, **given)) == expected[0][0]
    bold = Sampling(temperature=2.0)
    assert [a.text for a in helped.generate(prompts, bold, seed=1)] == [
        next(helped.generate([prompt], bold, seed=1)).text for prompt in prompts]


def test_a_state_that_cannot_go_back_is_told_and_not_needed():
    model = writing(attention="linear")
    with pytest.raises(UserError, match="LinearState cannot go back; write without a draft, or without state"):
        next(Engine(model, BYTES, draft=model).generate(["some"]))
    answer = next(Engine(model, BYTES, draft=model, use_state=False).generate(["some"], GREEDY, max_new_tokens=5))
    assert answer.tokens == next(Engine(model, BYTES).generate(["some"], GREEDY, max_new_tokens=5)).tokens


def test_a_draft_of_other_tokens_is_refused():
    with pytest.raises(UserError, match="draft: expected a model like this one, decoder of 280 tokens; found decoder of 4"):
        Engine(writing(), BYTES, draft=writing(tokenizer=TOKENIZER))
