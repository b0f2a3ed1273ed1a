"""The engine: each prompt is answered as it would be alone, ends as it is told to, and is told about where it cannot be."""

from dataclasses import replace

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_step import plain_step
from writing_models import BYTES, letters, writing

from miniformer.decoding.beam_search import Beams
from miniformer.decoding.sampling import Allowed, LogitBias, Sampling
from miniformer.inference.engine import Answer, Engine
from miniformer.inference.load import load
from miniformer.kernel import UserError

GREEDY = Sampling(temperature=0)
BOLD = Sampling(temperature=1.5, top_p=0.95)
PROMPTS = ["some", "naïve text", "", "東京 and some more text to learn", "café"]
ENGINES = {"decoder": Engine(writing(), BYTES), "encoder-decoder": Engine(writing(has_source=True), BYTES),
           "static": Engine(writing(), BYTES, compile=True),
           "static encoder-decoder": Engine(writing(has_source=True), BYTES, compile=True)}
for engine in list(ENGINES.values())[2:]:
    engine._step = plain_step
engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def one(engine, prompt, *args, **given):
    [answer] = engine.generate([prompt], *args, **given)
    return answer


def alike(found, expected):
    """The same answers, log-probabilities up to rounding."""
    found, expected = list(found), list(expected)
    assert [replace(answer, logprobs=[]) for answer in found] == [replace(answer, logprobs=[]) for answer in expected]
    return [lp for a in found for lp in a.logprobs] == pytest.approx([lp for a in expected for lp in a.logprobs])


@torch.no_grad()
def naive(engine, prompt, n):
    """The likeliest tokens, each from a whole pass, up to the end token."""
    ids, new = BYTES.encode(prompt), []
    while len(new) < n:
        model = engine.model
        logits = model(torch.tensor([ids]), torch.tensor([[1, *new]]))[0] if model.has_source else model(
            torch.tensor([[*ids, *new]]))
        if (token := int(logits[0, -1].argmax())) == BYTES.eos_id:
            break
        new.append(token)
    return new


@engines
def test_greedy_answers_of_a_ragged_batch_are_those_of_whole_passes_over_each_alone(engine):
    answers = list(engine.generate(PROMPTS, GREEDY, max_new_tokens=12))
    assert [answer.prompt for answer in answers] == PROMPTS
    assert [answer.tokens for answer in answers] == [naive(engine, prompt, 12) for prompt in PROMPTS]
    assert len({answer.text for answer in answers}) > 3, "answers that differ, or the test sees nothing"


@engines
@settings(max_examples=depth.examples(12))
@given(st.permutations(PROMPTS), st.integers(1, 5), st.integers(0, 2**40))
def test_a_seed_gives_the_same_text_alone_and_in_any_batch(engine, prompts, batch_size, seed):
    batched = Engine(engine.model, BYTES, batch_size=batch_size)
    found = {answer.prompt: answer.text for answer in batched.generate(prompts, BOLD, max_new_tokens=8, seed=seed)}
    assert found == {prompt: one(engine, prompt, BOLD, max_new_tokens=8, seed=seed).text for prompt in PROMPTS}


@engines
def test_it_is_the_same_text_without_state(engine):
    plain = Engine(engine.model, BYTES, use_state=False)
    given = {"max_new_tokens": 8, "seed": 3}
    assert alike(plain.generate(PROMPTS, BOLD, **given), engine.generate(PROMPTS, BOLD, **given))


@engines
def test_pieces_of_a_stream_are_the_text_of_its_answer(engine):
    stream = engine.stream("some text", BOLD, max_new_tokens=20, seed=1)
    assert stream.answer is None
    pieces = list(stream)
    assert stream.answer == one(engine, "some text", BOLD, max_new_tokens=20, seed=1)
    assert "".join(pieces) == stream.answer.text and len(pieces) > 5


def test_a_stream_comes_token_by_token():
    engine, calls = ENGINES["decoder"], []
    hook = engine.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        next(engine.stream("some text", GREEDY, max_new_tokens=50))
    finally:
        hook.remove()
    assert len(calls) <= 3


@engines
def test_what_ends_a_text_is_told(engine):
    whole = one(engine, "some text", GREEDY, max_new_tokens=20)
    assert (whole.finish_reason, len(whole.tokens), len(whole.logprobs)) == ("length", 20, 20)
    stopped = one(engine, "some text", GREEDY, max_new_tokens=20, stop=[whole.text[5:8]])
    assert (stopped.finish_reason, stopped.text) == ("stop", whole.text[:whole.text.index(whole.text[5:8])])
    assert stopped.tokens == whole.tokens[:len(stopped.tokens)]
    ended = one(engine, "some text", Sampling(temperature=0, processors=(EndAfter(4),)), max_new_tokens=20)
    assert (ended.finish_reason, ended.tokens) == ("eos", whole.tokens[:4])
    assert ended.text == BYTES.decode(whole.tokens[:4]) and len(ended.logprobs) == 4


class EndAfter:
    """Lets a text have so many tokens."""

    def __init__(self, count):
        self.count = count

    def __call__(self, logits, text):
        return logits if len(text.new) < self.count else Allowed(lambda _: [BYTES.eos_id])(logits, text)


@engines
def test_texts_that_end_at_different_times_disturb_no_other(engine):
    whole = list(engine.generate(PROMPTS, GREEDY, max_new_tokens=15))
    stop = [whole[0].text[2:4], whole[3].text[6:8]]
    found = list(engine.generate(PROMPTS, GREEDY, max_new_tokens=15, stop=stop))
    assert alike(found, [one(engine, prompt, GREEDY, max_new_tokens=15, stop=stop) for prompt in PROMPTS])
    assert len({len(answer.tokens) for answer in found}) > 1


@engines
def test_no_new_tokens_are_no_text(engine):
    assert one(engine, "some", max_new_tokens=0) == Answer("some", "", [], [], "length")


def test_many_prompts_are_taken_as_they_are_needed_and_answered_in_order():
    taken = []
    prompts = (taken.append(n) or f"some {n}" for n in range(100))
    answers = Engine(ENGINES["decoder"].model, BYTES, batch_size=2).generate(prompts, GREEDY, max_new_tokens=1)
    assert next(answers).prompt == "some 0" and len(taken) < 30
    assert [answer.prompt for answer in answers] == [f"some {n}" for n in range(1, 100)]


@pytest.mark.parametrize("has_source", [False, True])
def test_positions_are_used_to_the_last_and_not_beyond(has_source):
    """The last token that is written is not read, so it needs no position."""
    engine = Engine(writing(has_source, letters(), position="learned", max_seq_len=8, eos_id=None), NoEnd())
    for prompt in ("a", "abc", "abcdabcd"):
        answer = one(engine, prompt, GREEDY, max_new_tokens=100)
        assert len(answer.tokens) == (8 if has_source else 9 - len(prompt)) and answer.finish_reason == "length"
    together = engine.generate(["a", "abc", "abcdabcd"], GREEDY, max_new_tokens=100)
    assert alike(together, [one(engine, prompt, GREEDY, max_new_tokens=100) for prompt in ("a", "abc", "abcdabcd")])
    with pytest.raises(UserError, match="9 tokens, and this model reads at most max_seq_len = 8; shorten it"):
        one(engine, "abcdabcda")


class NoEndBytes:
    """The tokens of any text, none of which ends a text."""

    eos_id, bos_id, pad_id, encode, decode = None, 1, 0, BYTES.encode, BYTES.decode


class NoEnd:
    """The letters, none of which ends a text."""

    eos_id, bos_id, pad_id = None, None, 0

    def __init__(self):
        self.encode, self.decode = letters().encode, letters().decode


def test_a_prompt_without_end_goes_on_where_positions_go_on():
    engine = Engine(writing(tokenizer=letters(), position="rope", max_seq_len=8), NoEnd())
    assert len(one(engine, "abcd" * 5, GREEDY, max_new_tokens=30).tokens) == 30


def test_a_prompt_that_is_too_long_keeps_its_end_if_that_is_asked_for():
    engine = Engine(writing(tokenizer=letters(), position="learned", max_seq_len=8), NoEnd())
    assert engine.encode("abcdabcdab", 3, truncate=True).ids == letters().encode("cdabcdab"[-6:])
    assert engine.encode("abcdabcdab", 30, truncate=True).ids == letters().encode("cdab"), "half at least"
    assert engine.encode("abc", 3, truncate=True).ids == letters().encode("abc")
    assert one(engine, "abcdabcdab", GREEDY, max_new_tokens=3, truncate=True).tokens == one(
        engine, "abcdab", GREEDY, max_new_tokens=3).tokens
    started = Engine(writing(max_seq_len=8), BYTES).encode("some text to learn from", 3, truncate=True).ids
    assert started == [BYTES.bos_id, *BYTES.encode("some text to learn from")[-5:]]
    source = Engine(writing(has_source=True, tokenizer=letters(), max_seq_len=8), NoEnd())
    assert source.encode("abcdabcdab", 3, truncate=True).ids == letters().encode("cdabcdab")


def test_a_prompt_is_encoded_as_it_is_told_to():
    """A source that does not go on may end with a token, as T5's do."""
    whole = Engine(ENGINES["encoder-decoder"].model, BYTES, encode=lambda text: [*BYTES.encode(text), BYTES.eos_id])
    assert whole.encode("some", 3).ids == [*BYTES.encode("some"), BYTES.eos_id]
    assert one(whole, "some", GREEDY).tokens != one(ENGINES["encoder-decoder"], "some", GREEDY).tokens


def test_an_empty_prompt_is_the_start_token_or_nothing_to_go_on():
    assert len(one(ENGINES["decoder"], "", max_new_tokens=3).tokens) == 3
    with pytest.raises(UserError, match="the prompt has no tokens"):
        one(Engine(writing(tokenizer=letters()), NoEnd()), "")


@pytest.mark.parametrize("has_source", [False, True])
def test_the_end_token_is_the_model_s_own_whatever_the_tokenizer_calls_it(has_source):
    tokens = ("<pad>", "<bos>", "<|im_end|>", *"abcde")
    tokenizer = letters(tokens)
    assert tokenizer.eos_id is None
    push = Sampling(temperature=0, processors=(lambda logits, text: Allowed(
        lambda text: [2] if len(text.new) >= 3 else [4])(logits, text),))
    for eos_id, expected in ((2, ("eos", 3)), (None, ("length", 9))):
        engine = Engine(writing(has_source, tokenizer, eos_id=eos_id), tokenizer)
        answer = one(engine, "ab", push, max_new_tokens=9)
        assert (answer.finish_reason, len(answer.tokens)) == expected
        [[best]] = engine.search(["ab"], Beams(1), push, max_new_tokens=9)
        assert (best.finish_reason, len(best.tokens)) == expected
    named = letters()
    assert Engine(writing(has_source, named, eos_id=None), named).eos_id == named.eos_id, "where the model has none"
    assert Engine(writing(has_source, named, eos_id=5), named).eos_id == 5


def told(caplog, *texts, has_source=False, truncate=False, **fields):
    """What is said of prompts, each asked for twice."""
    caplog.clear()
    engine = Engine(writing(has_source, letters(), max_seq_len=8, **fields), NoEnd())
    for text in texts * 2:
        one(engine, text, GREEDY, max_new_tokens=5, truncate=truncate)
    return [record.message for record in caplog.records]


def test_lengths_beyond_training_and_what_is_cut_are_told_once(caplog):
    assert told(caplog, "abc") == [] and told(caplog, "abcd", has_source=True) == []
    [prompt, text] = told(caplog, "abcdabcda", "abcdabc")
    assert prompt.startswith("the prompt has 9 tokens, and the model was trained on at most max_seq_len = 8;")
    assert text.startswith("the text may go on after 11 tokens, and the model was trained on at most max_seq_len = 8;")
    [source] = told(caplog, "abcdabcda", has_source=True)
    assert source.startswith("the prompt has 9 tokens, and the model was trained on at most max_seq_len = 8;")
    assert told(caplog, "abcdab", position="learned") == [
        "at most 3 new tokens instead of 5: the model's positions end at max_seq_len = 8, prompt included where it continues "
        "one"]
    [cut] = told(caplog, "abcdabcdabc", truncate=True)
    assert cut.startswith("the prompt has 11 tokens, and the model reads at most max_seq_len = 8, new tokens included")
    assert cut.endswith("only its last 4 are read")


@pytest.mark.parametrize("fields", [{}, {"attention": "mla"}, {"attention": {"name": "mha", "window": 5}},
                                    {"attention": "linear"}])
@pytest.mark.parametrize("has_source", [False, True])
def test_a_text_may_be_asked_to_be_longer_than_any_memory(has_source, fields):
    """Room for it is made as it grows."""
    if has_source and "attention" in fields:
        fields = {**fields, "cross_attention": "mha"}
    model = writing(has_source, eos_id=None, **fields)
    engine = Engine(model, NoEndBytes())
    stream = engine.stream("some text", GREEDY, max_new_tokens=10**15)
    assert len([next(stream) for _ in range(5)]) == 5


def test_a_constraint_that_leaves_nothing_is_told():
    with pytest.raises(UserError, match="no token is allowed after 1 new tokens"):
        one(ENGINES["decoder"], "some", Sampling(processors=(Allowed(lambda text: [] if text.new else [40]),)))


def test_parts_of_ones_own_shape_what_is_written():
    answer = one(ENGINES["decoder"], "some", Sampling(temperature=0, processors=(LogitBias({BYTES.encode("x")[1]: 1e6}),)),
                 max_new_tokens=4)
    assert answer.text == "xxxx"


@pytest.mark.parametrize(("given", "told"), [
    *(({"max_new_tokens": value}, f"max_new_tokens: expected a whole number, not negative; found {value!r}")
      for value in (-1, None, 2.5, "9")),
    ({"seed": 2**70}, "seed: expected a whole number of 64 bits"), ({"seed": "a"}, "seed: expected a whole number"),
    ({"stop": [""]}, "stop: an empty string"), ({"stop": ""}, "stop: an empty string"),
    ({"stop": 5}, "stop: expected a string"),
    ({"stop": ["a", None]}, "stop: expected a string, or a list of them; found None")])
def test_settings_that_mean_nothing_are_refused(given, told):
    with pytest.raises(UserError, match=told):
        one(ENGINES["decoder"], "some", **given)
    with pytest.raises(UserError, match=told):
        list(ENGINES["decoder"].stream("some", **given))
    with pytest.raises(UserError, match="batch_size: at least 1"):
        Engine(ENGINES["decoder"].model, BYTES, batch_size=0)
    with pytest.raises(UserError, match=r"batch_size: expected a whole number, not negative; found 2\.5"):
        Engine(ENGINES["decoder"].model, BYTES, batch_size=2.5)


def test_a_batch_may_be_larger_than_any_number_of_prompts():
    answers = Engine(ENGINES["decoder"].model, BYTES, batch_size=10**30).generate(PROMPTS, GREEDY, max_new_tokens=2)
    assert [answer.prompt for answer in answers] == PROMPTS


def test_a_prompt_that_cannot_be_encoded_is_refused():
    with pytest.raises(UserError, match=r"prompt: .*'\\udce9' in position 3: surrogates not allowed"):
        one(ENGINES["decoder"], "caf\udce9")


def test_a_model_that_sees_later_tokens_cannot_write():
    with pytest.raises(UserError, match="causal: false"):
        one(Engine(writing(causal=False), BYTES), "some")


def test_what_a_run_has_learnt_is_written(trained, answering):
    fox, animals = load(trained), load(answering)
    engine = Engine(fox.model, fox.tokenizer)
    answer = one(engine, "the quick brown", GREEDY, max_new_tokens=30, stop=[" over"])
    assert (answer.text, answer.finish_reason) == (" fox jumps", "stop")
    answers = Engine(animals.model, animals.tokenizer).generate(["7 times the owl jumps", "9 times the cat jumps"], GREEDY)
    assert [(answer.text, answer.finish_reason) for answer in answers] == [("the owl", "eos"), ("the cat", "eos")]


@engines
def test_a_search_of_width_one_is_greedy(engine):
    found = [best for [best] in engine.search(PROMPTS, Beams(1), max_new_tokens=10)]
    assert alike([replace(answer, score=None) for answer in found], engine.generate(PROMPTS, GREEDY, max_new_tokens=10))


@engines
def test_a_search_gives_the_best_first_and_ends_at_stop_strings(engine):
    [whole] = engine.search(["some text"], Beams(4), max_new_tokens=10)
    assert len(whole) == 4 and [answer.score for answer in whole] == sorted((answer.score for answer in whole), reverse=True)
    assert whole[0].score == pytest.approx(sum(whole[0].logprobs) / len(whole[0].logprobs))
    stop = whole[0].text[1]
    [found] = engine.search(["some text"], Beams(4, early_stop=True), max_new_tokens=10, stop=[stop])
    assert any(answer.finish_reason == "stop" for answer in found) and not any(stop in answer.text for answer in found)


@engines
def test_after_a_stop_string_nothing_more_is_computed(engine):
    whole = one(engine, "some text", GREEDY, max_new_tokens=20)
    stop, calls = whole.text[5:8], []
    hook = engine.model.head.register_forward_hook(lambda *_: calls.append(1))
    try:
        stopped = one(engine, "some text", GREEDY, max_new_tokens=20, stop=stop)
        assert len(calls) == len(stopped.tokens) < 20
    finally:
        hook.remove()


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_search_ends_where_its_best_text_does_at_a_stop_string(trained, early_stop):
    fox, calls = load(trained), []
    fox.model.register_forward_hook(lambda *_: calls.append(1))
    for width in (1, 2, 4):
        calls.clear()
        [[best, *others]] = Engine(fox.model, fox.tokenizer).search(
            ["the quick"], Beams(width, early_stop=early_stop), max_new_tokens=60, stop=".")
        assert (best.text, best.finish_reason) == (" brown fox jumps over the lazy dog", "stop")
        assert len(calls) == len(best.tokens) and not any("." in answer.text for answer in others)


def test_as_many_texts_are_found_as_are_asked_for_though_the_best_has_stopped():
    [whole] = ENGINES["decoder"].search(["some text"], Beams(4), max_new_tokens=10)
    for n_best in (1, 3, 4):
        [found] = ENGINES["decoder"].search(["some text"], Beams(4), max_new_tokens=10, stop=whole[0].text[1], n_best=n_best)
        assert len(found) >= n_best and found[0].finish_reason == "stop"


def test_a_search_without_new_tokens_is_no_text():
    assert list(ENGINES["decoder"].search(["some"], max_new_tokens=0)) == [[Answer("some", "", [], [], "length")]]


def test_a_search_finds_what_a_run_has_learnt(answering):
    animals = load(answering)
    [[best, *others]] = Engine(animals.model, animals.tokenizer).search(["7 times the owl jumps"], Beams(3))
    assert (best.text, best.finish_reason) == ("the owl", "eos") and len(others) == 2


@engines
def test_one_stop_string_may_be_given_by_itself(engine):
    whole = one(engine, "some text", GREEDY, max_new_tokens=10).text
    stop = whole[2:4]
    assert one(engine, "some text", GREEDY, max_new_tokens=10, stop=stop).text == whole[:whole.index(stop)]
    assert "".join(engine.stream("some text", GREEDY, max_new_tokens=10, stop=stop)) == whole[:whole.index(stop)]


def test_a_draft_that_reads_less_is_told():
    model, draft = (writing(position="learned", max_seq_len=length) for length in (64, 8))
    with pytest.raises(UserError, match=r"draft: reads at most max_seq_len = 8 tokens, and .* may have \d+; expected"):
        one(Engine(model, BYTES, draft=draft), "some", GREEDY, max_new_tokens=20)


@pytest.mark.parametrize("has_source", [False, True])
def test_a_model_in_training_mode_writes_without_dropout_and_stays_in_it(has_source):
    model = writing(has_source, dropout=0.5)
    engine = Engine(model, BYTES)
    expected = list(engine.generate(PROMPTS, GREEDY, max_new_tokens=8))
    best = list(engine.search(["some"], Beams(2), max_new_tokens=8))
    model.train()
    model.head.eval()
    found = []
    for answer in engine.generate(PROMPTS, GREEDY, max_new_tokens=8):
        found.append(answer)
        assert model.training and not model.head.training, "between two answers it is whoever trains it that has it"
    assert found == expected
    assert list(engine.search(["some"], Beams(2), max_new_tokens=8)) == best
    stream = engine.stream(PROMPTS[0], GREEDY, max_new_tokens=8)
    assert next(stream) + "".join(stream) == expected[0].text
    with pytest.raises(UserError, match="no token is allowed"):
        one(engine, "some", Sampling(processors=(Allowed(lambda text: []),)))
    assert all(module.training == (module not in set(model.head.modules())) for module in model.modules())
