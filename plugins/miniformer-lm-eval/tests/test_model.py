"""What the harness is told is what the model says, token by token: log-likelihoods against loops that ask it one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from miniformer_lm_eval import MiniformerLM

import miniformer
from miniformer.inference.evaluate import evaluate
from miniformer.inference.pipeline import Pipeline
from miniformer.kernel.errors import UserError

PAIRS = [("the cat number 4", " sat on the mat"), ("the cat", " number"), ("the ", "cat"), ("", "the cat"), (" ", "a"),
         ("on the mat and saw 7 birds. " * 6, " the cat number 8"), ("birds", " 12 mats."), ("sat on", " the"), ("7", "th"),
         ("sat on", " a")]
LONG = " ".join(f"the cat number {i} saw {i + 1} birds." for i in range(8))


def requests(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def naive(pipeline: Pipeline, given: list[int], target: list[int]) -> tuple[float, bool]:
    """The score of `target` after `given`: a pass through the model for each token, which sees the last ones only."""
    total, greedy, most = 0.0, True, pipeline.model.config.max_seq_len
    start = max(0, len(given) + len(target) - 1 - most)
    for i, token in enumerate(target):
        with torch.no_grad():
            logits_V = pipeline.model(torch.tensor([[*given, *target[:i]][start:]]))[0, -1]
        total += float(logits_V.log_softmax(-1)[token])
        greedy = greedy and int(logits_V.argmax()) == token
    return total, greedy


def split(pipeline: Pipeline, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of both together, cut where those of the context end."""
    whole, given = (pipeline.tokenizer.encode(text) for text in (context + continuation, context.rstrip()))
    return whole[:len(given)], whole[len(given):]


@pytest.fixture(scope="module")
def lm(run: Path) -> MiniformerLM:
    return MiniformerLM(str(run), batch_size=8, device="cpu")


def test_log_likelihoods_are_those_of_a_loop_over_logits(lm: MiniformerLM, caplog: pytest.LogCaptureFixture) -> None:
    found = lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert f"1 of {len(PAIRS)} contexts" in caplog.text
    expected = [naive(lm.pipeline, *split(lm.pipeline, *pair)) for pair in PAIRS]
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}


@pytest.mark.parametrize("parts", [{"attention": "rope-mha"}, {"position": "learned", "norm": "layernorm"},
                                   {"attention": {"name": "mha", "window": 5}, "position": "alibi"}, {"attention": "linear"}])
def test_neighbours_change_nothing(drawn: Callable[..., Pipeline], parts: dict[str, Any]) -> None:
    pipeline = drawn("language-modeling", causal=True, head="lm", **parts)
    asked = requests("loglikelihood", PAIRS)
    alone, together = (MiniformerLM(pipeline, batch_size=size).loglikelihood(asked) for size in (1, 8))
    assert [x for x, _ in alone] == pytest.approx([x for x, _ in together], abs=2e-4)
    assert [x for x, _ in alone] == pytest.approx([naive(pipeline, *split(pipeline, *pair))[0] for pair in PAIRS], abs=2e-4)
    assert [x for _, x in alone] == [x for _, x in together]


def test_what_the_model_writes_is_greedy(lm: MiniformerLM) -> None:
    context = "the cat number 3"
    text = lm.pipeline.generate(context, max_new_tokens=6, temperature=0)
    (logprob, greedy), (_, other) = lm.loglikelihood(requests("loglikelihood", [(context, text), (context, text + "zzz")]))
    assert greedy and not other and logprob < 0


def test_a_continuation_that_merges_with_its_context_has_tokens_of_its_own(lm: MiniformerLM) -> None:
    tokenizer = lm.pipeline.tokenizer
    assert len(tokenizer.encode("the")) == len(tokenizer.encode("t"))  # one token is both
    [(logprob, _)] = lm.loglikelihood(requests("loglikelihood", [("t", "he")]))
    assert logprob == pytest.approx(naive(lm.pipeline, tokenizer.encode("t"), tokenizer.encode("he")[1:])[0], abs=1e-4)


def test_a_rolling_log_likelihood_is_the_sum_over_the_tokens(lm: MiniformerLM) -> None:
    texts = ["the cat number 5 sat", "birds."]
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    assert found == pytest.approx([sum(lm.pipeline.explain(text).logprobs[1:]) for text in texts], abs=1e-4)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_long_texts_are_scored_in_windows_each_token_once(run: Path, size: int) -> None:
    lm = MiniformerLM(run, batch_size=size)
    ids, most = lm.pipeline.tokenizer.encode(LONG), lm.max_length
    assert len(ids) > 2 * most and (len(ids) - 1) % most
    expected = 0.0
    for begin in range(1, len(ids), most):
        end = min(begin + most, len(ids))
        expected += naive(lm.pipeline, ids[max(0, end - 1 - most):begin], ids[begin:end])[0]
    texts = [("the cat",), (LONG,), ("",)]
    _, found, empty = lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    assert found == pytest.approx(expected, abs=1e-3) and empty == 0


def test_perplexity_is_that_of_evaluate_but_for_the_end_token(lm: MiniformerLM) -> None:
    """`miniformer evaluate` asks for the end of the text too."""
    text, tokenizer = "the cat number 9 saw 10 birds.", lm.pipeline.tokenizer
    ids = tokenizer.encode(text)
    record = lm.pipeline.task.Record(text=text)
    loss = evaluate(lm.pipeline.trained, [("here", record)])["loss"]
    [rolling] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    assert tokenizer.eos_id is not None
    assert loss * len(ids) == pytest.approx(-rolling - naive(lm.pipeline, ids, [tokenizer.eos_id])[0], abs=1e-3)


def test_texts_are_those_of_the_engine_cut_at_a_stop_string(lm: MiniformerLM) -> None:
    contexts = ["the cat number 3", "the", "birds", LONG]
    settings = [{"until": ["mat", "."], "max_gen_toks": 12}, {"until": "zzz", "max_gen_toks": 5}]
    asked = [(context, each) for context in contexts for each in settings]
    whole = [lm.pipeline.generate(context, max_new_tokens=each["max_gen_toks"], temperature=0, truncate=True)
             for context, each in asked]
    expected = [text.split("mat")[0].split(".")[0] if "mat" in each["until"] else text
                for text, (_, each) in zip(whole, asked, strict=True)]
    assert lm.generate_until(requests("generate_until", asked)) == expected
    assert expected != whole and sum(map(bool, whole)) > 4


def test_a_context_that_is_too_long_to_write_after_loses_its_start(drawn: Callable[..., Pipeline]) -> None:
    pipeline = drawn("language-modeling", causal=True, head="lm", position="learned")
    [text] = MiniformerLM(pipeline).generate_until(requests("generate_until", [(LONG, {"until": [], "max_gen_toks": 6})]))
    assert text == pipeline.generate(LONG, max_new_tokens=6, temperature=0, truncate=True) != ""


def test_settings_of_generation(lm: MiniformerLM) -> None:
    def write(**settings: Any) -> str:
        asked = ("the cat number", {"until": [], "max_gen_toks": 8, **settings})
        return lm.generate_until(requests("generate_until", [asked]))[0]

    greedy = lm.pipeline.generate("the cat number", max_new_tokens=8, temperature=0)
    assert write() == write(do_sample=False, temperature=1.0) == write(do_sample=True, top_k=1) == greedy
    assert write(num_beams=3) == lm.pipeline.generate("the cat number", max_new_tokens=8, beams=3)
    assert len({write(do_sample=True, temperature=3.0) for _ in range(5)}) > 1
    with pytest.raises(UserError, match=r"no 'top_q'; did you mean 'top_p'"):
        write(top_q=1)


def test_the_harness_finds_its_answers_again(run: Path, tmp_path: Path) -> None:
    lm = MiniformerLM(run)
    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    asked = {"loglikelihood": [("the cat", " number")], "loglikelihood_rolling": [("birds",)],
             "generate_until": [("the cat", {"until": ["."], "max_gen_toks": 3})]}
    for kind, arguments in asked.items():
        found = getattr(lm, kind)(requests(kind, arguments))
        assert len(cached.dbdict) == 1 + list(asked).index(kind)
        assert getattr(cached, kind)(requests(kind, arguments)) == found


def test_an_encoder_decoder_scores_and_writes_answers(drawn: Callable[..., Pipeline]) -> None:
    pipeline = drawn("seq2seq", "seq2seq", head="lm")
    model, tokenizer = pipeline.model, pipeline.tokenizer
    pairs = [("the cat number 4", "sat on the mat"), ("birds", "mats"), (LONG, "a cat"), ("the ", "cat")]
    expected = []
    for context, continuation in pairs:
        spaces = len(context) - len(context.rstrip())
        source = tokenizer.encode_whole(context.rstrip())[-model.config.max_seq_len:]
        target = tokenizer.encode(" " * spaces + continuation)[1:]
        with torch.no_grad():
            logits_TV = model(torch.tensor([source]), torch.tensor([[model.config.bos_id, *target[:-1]]]))[0][0]
        expected.append(float(logits_TV.log_softmax(-1)[range(len(target)), target].sum()))
    for size in (1, 8):
        lm = MiniformerLM(pipeline, batch_size=size)
        found = lm.loglikelihood(requests("loglikelihood", pairs))
        assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=2e-4)
    [text] = lm.generate_until(requests("generate_until", [("the cat", {"until": [], "max_gen_toks": 6})]))
    assert text == pipeline.generate("the cat", max_new_tokens=6, temperature=0)
    with pytest.raises(UserError, match="loglikelihood_rolling"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("birds",)]))


def test_refusals(lm: MiniformerLM, run: Path, drawn: Callable[..., Pipeline]) -> None:
    with pytest.raises(UserError, match="does not predict the next token"):
        MiniformerLM(drawn("masked-lm", head="lm"))
    for size in ("auto", 0, -1, 2.5):
        with pytest.raises(UserError, match="batch_size"):
            MiniformerLM(run, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'gpu' cannot be used"):
        MiniformerLM(run, device="gpu")
    with pytest.raises(UserError, match="a continuation has"):
        lm.loglikelihood(requests("loglikelihood", [("the", " " + LONG)]))
    with pytest.raises(UserError, match="chat template"):
        lm.apply_chat_template([])


def test_a_text_without_context_needs_a_marker(drawn: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = MiniformerLM(drawn("language-modeling", causal=True, head="lm"))
    tokenizer = lm.pipeline.tokenizer
    assert (lm.prefix_token_id, lm.eot_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    monkeypatch.setattr(tokenizer, "bos_id", None)
    assert lm.prefix_token_id == tokenizer.eos_id
    monkeypatch.setattr(lm.engine, "eos_id", None)
    with pytest.raises(UserError, match="neither a start nor an end token"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("birds",)]))


def test_it_runs_where_the_harness_says(run: Path) -> None:
    """The harness's command line says cuda:0 where nobody named a device."""
    lm = MiniformerLM.create_from_arg_obj({"run": str(run)}, {"device": "cuda:0", "batch_size": "4", "max_batch_size": None})
    assert lm.batch_size == 4 and lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert MiniformerLM.create_from_arg_string(f"run={run},batch_size=2", {"device": "cpu"}).device.type == "cpu"


def test_tokenizers_are_told_apart(lm: MiniformerLM, run: Path, drawn: Callable[..., Pipeline]) -> None:
    other = MiniformerLM(drawn("language-modeling", causal=True, head="lm"))
    assert lm.tokenizer_name == MiniformerLM(miniformer.load(run)).tokenizer_name != other.tokenizer_name
