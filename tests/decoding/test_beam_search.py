"""Beam search against a list of all texts, and against what it promises of its settings."""

from collections import Counter
from itertools import product

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_models import letters, writing

from miniformer.decoding.beam_search import Beams, search
from miniformer.decoding.sampling import Allowed, LogitBias, Sampling
from miniformer.kernel import Layout, UserError

V, END, LONGEST = 5, 2, 4
TOKENIZER = letters(("<pad>", "<bos>", "<eos>", "a", "b"))
MODELS = {name: writing(name == "seq2seq", TOKENIZER) for name in ("transformer", "seq2seq")}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
PROMPTS = torch.tensor([[3, 4, 3], [4, 4, 0], [3, 3, 4]])
LAYOUT = Layout.from_lengths([3, 2, 3])
GREEDY = Sampling()


@torch.no_grad()
def searched(model, beams, *, limit=LONGEST, sampling=GREEDY, prompts=PROMPTS, layout=LAYOUT, use_state=True, end=END):
    feed = model.feed(prompts, limit, layout=layout, use_state=use_state)
    return search(feed, [limit] * len(prompts), beams, sampling, lambda text: "eos" if text.new[-1] == end else None)


@torch.no_grad()
def logits(model, prompt, new):
    if model.has_source:
        return model(torch.tensor([prompt]), torch.tensor([[model.config.bos_id, *new]]))[0][0, -1]
    return model(torch.tensor([[*prompt, *new]]))[0, -1]


def all_texts(model, prompt, penalty):
    """Every text that ends or is as long as it may be, with its score, best first."""
    known, found = {}, []
    for text in product(range(V), repeat=LONGEST):
        text = text[:text.index(END) + 1] if END in text else text
        total = 0.0
        for i, token in enumerate(text):
            if text[:i] not in known:
                known[text[:i]] = logits(model, prompt, text[:i]).log_softmax(dim=0)
            total += float(known[text[:i]][token])
        found.append((total / len(text) ** penalty, list(text)))
    return sorted({tuple(text): (score, text) for score, text in found}.values(), reverse=True)


@models
@pytest.mark.parametrize(("penalty", "use_state"), depth.every(
    3, [(penalty, use_state) for penalty in (-0.5, 0.0, 1.0, 2.0) for use_state in (True, False)]))
def test_wide_enough_it_finds_the_best_of_all_texts(model, penalty, use_state):
    beams = Beams(width=(V - 1) ** (LONGEST - 1) * V, length_penalty=penalty, early_stop="never")
    for row, found in enumerate(searched(model, beams, use_state=use_state)):
        best = all_texts(model, PROMPTS[row][LAYOUT.real[row]].tolist(), penalty)
        assert [one.new for one in found[:5]] == [text for _, text in best[:5]]
        assert [one.score for one in found[:5]] == pytest.approx([score for score, _ in best[:5]])
        assert sum(found[0].logprobs) == pytest.approx(found[0].total)


@models
@pytest.mark.parametrize("early_stop", [True, False])
def test_one_beam_is_greedy(model, early_stop):
    for row, [one] in enumerate(searched(model, Beams(1, early_stop=early_stop), limit=12)):
        expected = []
        while len(expected) < 12 and expected[-1:] != [END]:
            expected.append(int(logits(model, PROMPTS[row][LAYOUT.real[row]].tolist(), expected).argmax()))
        assert one.new == expected
        assert one.finish == ("eos" if expected[-1] == END else "length")


@models
@settings(max_examples=depth.examples(15))
@given(st.integers(1, 6), st.sampled_from([0.0, 1.0]), st.sampled_from([True, False, "never"]), st.sampled_from([1, 2, 3]))
def test_a_row_finds_what_it_finds_alone_with_and_without_state(model, width, penalty, early_stop, groups):
    beams = Beams(width * groups, penalty, early_stop, groups)
    together = searched(model, beams, limit=6)
    alone = [searched(model, beams, limit=6, prompts=row[real][None], layout=None)[0]
             for row, real in zip(PROMPTS, LAYOUT.real)]
    again = searched(model, beams, limit=6, use_state=False)
    assert [[one.new for one in row] for row in together] == [[one.new for one in row] for row in alone]
    assert [[one.new for one in row] for row in together] == [[one.new for one in row] for row in again]


@models
def test_a_wider_search_finds_no_worse_and_its_texts_differ(model):
    narrow, broad = (searched(model, Beams(width, early_stop="never"), limit=8) for width in (2, 40))
    for few, many in zip(narrow, broad):
        assert many[0].score >= few[0].score - 1e-9
        assert len({tuple(one.new) for one in many}) == len(many) == 40
        assert [one.score for one in many] == sorted((one.score for one in many), reverse=True)


@models
def test_length_is_worth_what_the_penalty_makes_it(model):
    short, long = (searched(model, Beams(8, penalty), limit=8) for penalty in (-2.0, 4.0))
    assert sum(len(row[0].new) for row in short) < sum(len(row[0].new) for row in long)


@models
def test_an_early_stop_takes_the_first_that_end(model):
    calls = []
    for early_stop in (True, "never"):
        hook = model.register_forward_hook(lambda *_, calls=calls, which=early_stop: calls.append(which))
        searched(model, Beams(2, 3.0, early_stop), limit=20, sampling=Sampling(processors=(LogitBias({END: 12.0}),)))
        hook.remove()
    assert calls.count(True) < calls.count("never")


@models
def test_a_search_that_may_stop_later_takes_more_steps(model):
    steps = Counter()
    for early_stop, bias in product((True, False, "never"), (2.0, 6.0)):
        hook = model.register_forward_hook(lambda *_, which=early_stop: steps.update([which]))
        searched(model, Beams(2, early_stop=early_stop), limit=20, sampling=Sampling(processors=(LogitBias({END: bias}),)))
        hook.remove()
    assert steps[True] < steps[False] < steps["never"]


@models
def test_groups_begin_with_different_tokens(model):
    for row in searched(model, Beams(3, groups=3, diversity=1e3), limit=1, end=None):
        assert len({one.new[0] for one in row}) == 3
    same = searched(model, Beams(3, groups=3, diversity=0), limit=4)
    assert all(len({tuple(one.new) for one in row}) == 1 for row in same)


@models
def test_the_score_is_the_models_own_whatever_diversity_does(model):
    for one in searched(model, Beams(4, groups=2, diversity=3.0), limit=5)[0]:
        expected = [float(logits(model, PROMPTS[0].tolist(), one.new[:i]).log_softmax(0)[t]) for i, t in enumerate(one.new)]
        assert one.total == pytest.approx(sum(expected))


@models
def test_a_text_that_nothing_may_follow_gives_way_to_others(model):
    def allowed(text):
        return [] if text.new == [3] else [4, END] if text.new == [4] else [3, 4]

    for row in searched(model, Beams(2), sampling=Sampling(processors=(Allowed(allowed),))):
        assert row and all(one.new[0] == 4 for one in row)
    with pytest.raises(UserError, match="no token is allowed after 1 new tokens"):
        searched(model, Beams(2), sampling=Sampling(processors=(Allowed(lambda text: [] if text.new else [3]),)))


@models
def test_nothing_is_found_where_nothing_may_be_written(model):
    assert searched(model, Beams(2), limit=0) == [[], [], []]


@pytest.mark.parametrize(("given", "told"), [
    ({"width": 0}, "width: expected at least 1; found 0"), ({"width": 2.5}, "width: expected a whole number"),
    ({"width": 10**9}, "width: expected at most 10,000; found 1000000000"),
    ({"length_penalty": float("nan")}, "length_penalty"),
    ({"early_stop": "soon"}, "early_stop: expected True, False or 'never'; found 'soon'"),
    ({"width": 4, "groups": 3}, "groups: expected a divisor of width 4; found 3"), ({"diversity": -1.0}, "diversity")])
def test_settings_that_mean_nothing_are_refused(given, told):
    with pytest.raises(UserError, match=f"beams: {told}"):
        Beams(**given)
