"""The parts that choose a token: each against its definition, together in their order, and what is refused."""

import math
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.decoding.sampling import (
    UNFILTERED,
    Allowed,
    CountPenalty,
    LogitBias,
    MinP,
    NoRepeatNgram,
    RepetitionPenalty,
    Sampling,
    Text,
    TopK,
    TopP,
)
from miniformer.kernel import RunError, UserError

V = 7
logits = st.lists(st.integers(-200, 200), min_size=V, max_size=V, unique=True).map(lambda xs: torch.tensor(xs).double() / 50)
tokens = st.lists(st.integers(0, V - 1), max_size=8)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype))


@given(logits, tokens, tokens, st.floats(0.2, 4))
def test_the_repetition_penalty_is_for_what_was_given_and_what_was_written(x, prompt, new, penalty):
    expected = [(v / penalty if v > 0 else v * penalty) if i in prompt + new else v for i, v in enumerate(x.tolist())]
    close(RepetitionPenalty(penalty)(x, Text(prompt, new)), expected)


@given(logits, tokens, tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_what_was_written_alone(x, prompt, new, presence, frequency):
    counts = Counter(new)
    expected = [v - (presence if counts[i] else 0) - frequency * counts[i] for i, v in enumerate(x.tolist())]
    close(CountPenalty(presence, frequency)(x, Text(prompt, new)), expected)


@given(logits, tokens, tokens, st.integers(1, 4))
def test_no_run_is_written_that_is_there_already(x, prompt, new, n):
    all_tokens = prompt + new
    there = {tuple(all_tokens[i:i + n]) for i in range(len(all_tokens) - n + 1)}
    for token, value in enumerate(NoRepeatNgram(n)(x, Text(prompt, new)).tolist()):
        run = tuple([*all_tokens, token][-n:])
        assert value == (-math.inf if len(run) == n and run in there else float(x[token]))


@given(logits, st.dictionaries(st.integers(0, V - 1), st.floats(-3, 3)))
def test_a_bias_is_added(x, bias):
    close(LogitBias(bias)(x, Text([])), [v + bias.get(i, 0.0) for i, v in enumerate(x.tolist())])


@given(logits, st.sets(st.integers(0, V - 1)))
def test_only_what_is_allowed_keeps_its_logit(x, allowed):
    seen = []
    found = Allowed(lambda text: (seen.append(text), allowed)[1])(x, Text([1], [2, 3]))
    close(found, [v if i in allowed else -math.inf for i, v in enumerate(x.tolist())])
    assert seen == [Text([1], [2, 3])]


@given(logits, st.integers(1, V + 3), st.floats(0, 1), st.floats(0.01, 1))
def test_filters_keep_the_likeliest(x, k, p, ratio):
    order, chance = x.argsort(descending=True).tolist(), x.softmax(dim=0)
    assert kept(TopK(k)(x, Text([]))) == set(order[:k])
    assert kept(MinP(ratio)(x, Text([]))) == {i for i in range(V) if math.log(chance[i] / chance.max()) >= math.log(ratio)}
    nucleus = kept(TopP(p)(x, Text([])))
    assert nucleus == set(order[:len(nucleus)]) and order[0] in nucleus
    assert len(nucleus) in (1, V) or float(chance[list(nucleus)].sum()) >= p - 1e-9 > float(
        chance[order[:len(nucleus) - 1]].sum()) - 2e-9


def kept(found):
    return set(torch.nonzero(found > -math.inf)[:, 0].tolist())


@given(logits, st.floats(0.05, 3), st.integers(0, V), st.floats(0, 1), st.floats(0, 0.9))
def test_a_distribution_is_that_of_the_tokens_that_are_kept(x, temperature, top_k, top_p, min_p):
    found = Sampling(temperature, top_k, top_p, min_p).probabilities(x, Text([]))
    there = found > 0
    assert float(found.sum()) == pytest.approx(1) and there[x.argmax()]
    close(found[there], (x / temperature)[there].softmax(dim=0))


@given(logits, tokens)
def test_neutral_settings_leave_logits_alone(x, new):
    sampling = UNFILTERED
    assert sampling.edits == ()
    close(sampling.probabilities(sampling.edited(x, Text([], new)), Text([], new)), x.softmax(dim=0))


def test_edits_come_before_the_choice_and_ones_of_ones_own_last():
    x = torch.tensor([3.0, 2.0, 1.0])
    assert Sampling(temperature=0)(x, Text([]), None) == 0
    assert Sampling(temperature=0, presence_penalty=1.5)(x, Text([], [0]), None) == 1
    assert Sampling(temperature=0, no_repeat_ngram=1)(x, Text([0], [1]), None) == 2
    seen = []
    Sampling(presence_penalty=1.5, processors=(lambda y, text: (seen.append(y.tolist()), y)[1],))(x, Text([], [0]), None)
    assert seen == [[1.5, 2.0, 1.0]]


def test_a_processor_changes_nothing_that_it_is_given():
    x, text = torch.randn(V), Text([1, 2, 1, 2], [1, 2])
    before = x.clone()
    Sampling(0.7, 3, 0.9, 0.1, 1.3, 0.5, 0.5, 2, (LogitBias({1: 2.0}), Allowed(lambda _: range(5))))(x, text, None)
    assert torch.equal(x, before) and text == Text([1, 2, 1, 2], [1, 2])


@given(st.lists(logits, min_size=1, max_size=3), st.sampled_from([0.0, 0.7]), st.sampled_from([1.0, 1.5]))
def test_of_several_texts_each_gets_the_token_that_it_would_get_alone(rows, temperature, penalty):
    sampling, texts = Sampling(temperature, repetition_penalty=penalty), [Text([b], [b + 1]) for b in range(len(rows))]

    def generators():
        return [torch.Generator().manual_seed(b) for b in range(len(rows))]

    found = sampling.rows(torch.stack(rows), texts, generators())
    assert found == [sampling(*each) for each in zip(rows, texts, generators(), strict=True)]


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_of_several_texts_one_without_a_token_is_told(wrong):
    rows = torch.stack([torch.zeros(V), torch.full((V,), wrong)])
    with pytest.raises((RunError, UserError), match="after 3 new tokens"):
        Sampling(temperature=0).rows(rows, [Text([0]), Text([0], [1, 2, 3])], [None, None])


def test_where_nothing_is_allowed_it_is_told():
    with pytest.raises(UserError, match="no token is allowed after 2 new tokens"):
        Sampling(processors=(Allowed(lambda text: []),))(torch.zeros(V), Text([1], [2, 3]), None)
    with pytest.raises(UserError, match="no token is allowed"):
        Sampling(temperature=0, no_repeat_ngram=1)(torch.zeros(2), Text([0, 1]), None)


def test_logits_that_are_no_numbers_are_a_failure_of_the_model():
    with pytest.raises(RunError, match="not numbers after 0 new tokens"):
        Sampling()(torch.tensor([0.0, math.nan]), Text([]), None)


@pytest.mark.parametrize("processor", [LogitBias({V: 1.0}), LogitBias({-1: 1.0}), Allowed(lambda _: [0, V])])
def test_tokens_that_are_not_there_are_told(processor):
    with pytest.raises(UserError, match=f"expected ids of the {V} tokens; found (-1|{V})"):
        processor(torch.zeros(V), Text([]))


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0),
    ("presence_penalty", math.inf), ("frequency_penalty", math.nan), ("no_repeat_ngram", -1)])
def test_a_setting_out_of_range_is_told_by_name(name, value):
    with pytest.raises(UserError, match=f"{name}: expected .*; found {value}"):
        Sampling(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", None), ("temperature", "hot"), ("top_k", 2.5), ("top_k", True),
                                             ("no_repeat_ngram", "2"), ("min_p", [0.1]), ("repetition_penalty", None)])
def test_a_setting_of_the_wrong_type_is_told(name, value):
    with pytest.raises(UserError, match=rf"{name}: expected a (whole )?number.*found {re.escape(repr(value))}"):
        Sampling(**{name: value})


def test_numbers_of_other_libraries_are_numbers():
    Sampling(temperature=np.float32(0.5), top_k=np.int64(3), top_p=torch.tensor(0.5), min_p=Fraction(1, 3))
