"""Compiled decoding: the texts are those of an uncompiled step, and one graph serves texts of any length."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from depth import is_thorough, rarely
from writing_models import BYTES, writing

from miniformer.decoding.sampling import Sampling
from miniformer.decoding.state import StaticBuffer
from miniformer.inference.engine import Engine
from miniformer.kernel import UserError
from miniformer.ops import linear as products

GREEDY = Sampling(temperature=0)
LAYERS = 2 if is_thorough() else 1  # each takes as long again to compile
PROMPTS = ["some", "naïve text", "東京 and some more text to learn"]


def answers(engine, prompts, n):
    return [answer.tokens for answer in engine.generate(prompts, GREEDY, max_new_tokens=n)]


@pytest.mark.slow
@pytest.mark.parametrize("has_source", [False, rarely(True)])
def test_texts_are_those_of_a_step_that_is_not_compiled(has_source):
    model = writing(has_source, n_layers=LAYERS)
    plain, compiled = Engine(model, BYTES), Engine(model, BYTES, compile=True)
    torch._dynamo.utils.counters.clear()
    for prompts, n in ((PROMPTS, 12), (PROMPTS[:1], 12), (PROMPTS[:2], 9), (PROMPTS[1:2], 20)):
        assert answers(compiled, prompts, n) == answers(plain, prompts, n)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one for one row, and one for more"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_on_a_gpu_a_step_is_one_graph_and_writes_the_same(monkeypatch, dtype):
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
    model = writing().to("cuda", dtype)
    plain, compiled = Engine(model, BYTES), Engine(model, BYTES, compile=True)
    for prompts, n in ((PROMPTS, 12), (PROMPTS[:1], 20), (PROMPTS, 9)):
        replays.clear()
        assert answers(compiled, prompts, n) == answers(plain, prompts, n)
        assert replays


@pytest.mark.slow
def test_a_state_that_puts_new_tensors_into_its_attributes_is_not_left_behind(monkeypatch):
    def write(self, parts):
        self.parts = [old.index_copy(2, self.column, new) for old, new in zip(self.parts, parts, strict=True)]
        return tuple(self.parts)

    monkeypatch.setattr(StaticBuffer, "write", write)
    model = writing(n_layers=LAYERS)
    assert answers(Engine(model, BYTES, compile=True), PROMPTS, 6) == answers(Engine(model, BYTES), PROMPTS, 6)


@pytest.mark.slow
def test_threads_that_share_an_engine_have_texts_of_their_own(monkeypatch):
    made = torch.compile

    def slowly(*args, **kwargs):
        compiled = made(*args, **kwargs)

        def call(*given):
            found = compiled(*given)
            time.sleep(0.02)  # another thread's turn
            return found

        return call

    monkeypatch.setattr(torch, "compile", slowly)
    model = writing(n_layers=LAYERS)
    plain, compiled = Engine(model, BYTES), Engine(model, BYTES, compile=True)
    expected = [answers(plain, [prompt], 8) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            assert list(pool.map(lambda prompt: answers(compiled, [prompt], 8), PROMPTS)) == expected


@pytest.mark.slow
def test_weights_that_changed_between_texts_count(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "ENOUGH", 1)
    model = writing(n_layers=LAYERS)
    plain, compiled = Engine(model, BYTES), Engine(model, BYTES, compile=True)
    for scale in (1, -1):
        with torch.no_grad():
            model.head.out.weight.mul_(scale)
        for prompts in (PROMPTS, PROMPTS[:1]):
            assert answers(compiled, prompts, 6) == answers(plain, prompts, 6)


def test_what_cannot_be_compiled_is_said_once_and_decoded_as_ever(caplog):
    model = writing(attention={"name": "mha", "window": 4})
    with caplog.at_level(logging.WARNING):
        found = answers(Engine(model, BYTES, compile=True, batch_size=1), PROMPTS, 5)
    assert found == answers(Engine(model, BYTES), PROMPTS, 5)
    assert [record.getMessage() for record in caplog.records] == [
        "steps are not compiled: WindowState changes its shapes from step to step"]


@pytest.mark.parametrize(("given", "told"), [({"draft": writing()}, "not with a draft"),
                                             ({"use_state": False}, "not with use_state")])
def test_what_it_excludes_is_refused(given, told):
    with pytest.raises(UserError, match=f"compile: {told}"):
        Engine(writing(), BYTES, compile=True, **given)


def test_a_compiler_that_is_not_there_is_missed_at_once(monkeypatch):
    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"^compile: No working C\+\+ compiler found; install g\+\+"):
        Engine(writing(), BYTES, compile=True)
