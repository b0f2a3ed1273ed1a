"""Texts of a given form: whatever the model, what is written matches, alone, in a batch and by search."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_models import BYTES, letters, writing

from miniformer.data.tokenizer import Tokenizer
from miniformer.decoding.beam_search import Beams
from miniformer.decoding.sampling import Sampling, Text
from miniformer.inference.constrained import Constraint
from miniformer.inference.engine import Engine
from miniformer.kernel import UserError

pytest.importorskip("llguidance")
ENGINES = {"decoder": Engine(writing(), BYTES), "encoder-decoder": Engine(writing(has_source=True), BYTES)}
engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
PROMPTS = ["some", "naïve text", "café"]
SCHEMA = {"type": "object", "properties": {"animal": {"enum": ["owl", "fox"]}, "count": {"type": "integer", "minimum": 0,
                                                                                        "maximum": 99}},
          "required": ["animal", "count"], "additionalProperties": False}


@engines
@settings(max_examples=8)
@given(st.sampled_from([r"[a-c]{2,4}-[0-9]{2}", r"(yes|no|é🙂)!", r"x+y?"]), st.integers(0, 2**30), st.floats(0, 3))
def test_what_is_written_matches_a_regular_expression(engine, pattern, seed, temperature):
    sampling = Sampling(temperature, processors=(Constraint.regex(BYTES, pattern),))
    for answer in engine.generate(PROMPTS, sampling, seed=seed, max_new_tokens=400):
        assert answer.finish_reason == "eos" and re.fullmatch(pattern, answer.text)


@engines
def test_what_is_written_is_json_of_a_schema(engine):
    sampling = Sampling(1.5, processors=(Constraint.json_schema(BYTES, SCHEMA),))
    for seed in range(5):
        for answer in engine.generate(PROMPTS, sampling, seed=seed, max_new_tokens=100):
            found = json.loads(answer.text)
            assert found["animal"] in ("owl", "fox") and 0 <= found["count"] <= 99


@engines
def test_what_is_searched_for_matches_and_is_the_likeliest(engine):
    sampling = Sampling(processors=(Constraint.regex(BYTES, "[ab]{3}"),))
    for found in engine.search(PROMPTS, Beams(8, length_penalty=0, early_stop="never"), sampling):
        assert {answer.text for answer in found} == {a + b + c for a in "ab" for b in "ab" for c in "ab"}


def test_other_tokens_keep_the_chances_they_have_to_each_other():
    logits = torch.randn(BYTES.vocab_size + 5)
    found = Constraint.regex(BYTES, "a[bc]")(logits, Text([], BYTES.encode("a")[1:]))
    allowed = [BYTES.encode(letter)[1] for letter in "bc"]
    assert torch.equal(found[allowed], logits[allowed]) and int((found > -torch.inf).sum()) == 2


def test_it_is_forgotten_and_found_again(monkeypatch):
    monkeypatch.setattr("miniformer.inference.constrained.MATCHERS_KEPT", 1)
    sampling = Sampling(1.0, processors=(Constraint.regex(BYTES, r"[a-c]{2,4}-[0-9]{2}"),))
    answers = ENGINES["decoder"].generate(PROMPTS, sampling, seed=1)
    assert all(re.fullmatch(r"[a-c]{2,4}-[0-9]{2}", answer.text) for answer in answers)


@pytest.mark.parametrize(("make", "told"), [
    (lambda: Constraint.regex(BYTES, "(a"), "not a valid form"),
    (lambda: Constraint.json_schema(BYTES, {"type": "colour"}), "not a valid form"),
    (lambda: Constraint.regex(Tokenizer(letters(("<pad>", "a")).backend), "a"), "this tokenizer has none")])
def test_what_cannot_be_asked_for_is_told(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'miniformer\[constrained\]'"):
        Constraint.regex(BYTES, "a")
