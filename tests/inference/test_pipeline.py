"""A pipeline: a trained model asked with texts and records, each answer against direct computation."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from task_models import model_for
from writing_models import BYTES, writing

import miniformer
from miniformer.decoding.beam_search import Beams
from miniformer.inference.attention_maps import attention_maps
from miniformer.inference.load import Trained
from miniformer.inference.pipeline import Pipeline
from miniformer.kernel import DataError, Task, UserError, build


def pipeline(task, **fields):
    task = build(Task, task)
    model = writing(task.has_source, **fields) if task.head == "lm" and fields.get("causal") is not False else model_for(
        task, BYTES.vocab_size, **fields)
    return Pipeline(Trained(model, BYTES, task))


def test_importing_the_package_and_naming_load_costs_no_torch(fresh_python):
    assert fresh_python("import sys, miniformer; miniformer.load; print('torch' in sys.modules)") == "False"


def test_a_run_folder_is_loaded_and_generates(trained, answering):
    fox, animals = miniformer.load(trained), miniformer.load(str(answering))
    assert fox.generate("the quick", max_new_tokens=40, temperature=0, stop=[" over"]) == " brown fox jumps"
    assert fox.generate(["the quick", "the lazy"], max_new_tokens=40, temperature=0, stop=[".", " over"]) == [
        " brown fox jumps", " dog"]
    assert "".join(fox.stream("the quick", temperature=0, max_new_tokens=40, stop=[" over"])) == " brown fox jumps"
    assert animals.generate("7 times the owl jumps", beams=3) == "the owl"
    assert animals.generate(["7 times the owl jumps"], beams=Beams(2)) == ["the owl"]
    assert animals.predict("7 times the owl jumps") == {"target": "the owl"}


def test_called_it_does_what_its_model_is_for(trained, answering):
    fox, animals = miniformer.load(trained), miniformer.load(answering)
    labels = pipeline({"name": "classification", "labels": ["few", "many"]})
    assert fox("the quick", max_new_tokens=40, temperature=0, stop=[" over"]) == " brown fox jumps"
    assert animals(["7 times the owl jumps"], beams=2) == ["the owl"]
    assert animals({"source": "7 times the owl jumps"}) == {"target": "the owl"}
    assert labels("7 bears") == labels.predict("7 bears") == labels([{"input": "7 bears"}])[0]
    with pytest.raises(UserError, match="there is no setting 'temperature': a prediction has none, and this writes no text"):
        labels("7 bears", temperature=0)


def test_it_is_shown_by_model_task_size_and_folder(trained):
    fox = miniformer.load(trained)
    size = sum(parameter.numel() for parameter in fox.model.parameters())
    words = f"transformer for LanguageModeling, {size:,} parameters, from '{trained}'"
    assert repr(fox) == f"Pipeline({words})" and repr(fox.trained) == f"Trained({words})"
    assert repr(fox.engine) == f"Engine(transformer, {size:,} parameters, batch_size=16)"


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match="no saved model here"):
        miniformer.load(tmp_path)


def test_a_setting_that_is_not_there_is_told():
    with pytest.raises(UserError, match="there is no setting 'temprature'; did you mean 'temperature'"):
        pipeline("language-modeling").generate("a", temprature=0)


def test_predictions_are_for_texts_or_records_one_or_several():
    labels = pipeline({"name": "classification", "labels": ["few", "many"]})
    one, several = labels.predict("7 bears"), labels.predict([{"input": "7 bears"}, "some text"])
    assert one["label"] in ("few", "many") and several[0] == one and len(several) == 2
    with pytest.raises(DataError, match="record 1: field 'input' is missing; found 'inputs'"):
        labels.predict({"inputs": "7 bears"})


@torch.no_grad()
def test_an_embedding_is_the_heads_where_there_is_one_for_it():
    one = pipeline({"name": "embedding", "size": 6})
    vectors = one.embed(["some text", "café", "to learn " * 30])
    assert vectors.shape == (3, 6)
    expected = [one.predict({"anchor": text})["embedding"] for text in ("some text", "café", "to learn " * 30)]
    torch.testing.assert_close(vectors, torch.tensor(expected, dtype=vectors.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.embed("café"), vectors[1])


@pytest.mark.parametrize(("task", "size"), [({"name": "embedding", "size": 6}, 6), ("language-modeling", 16), ("seq2seq", 16)])
def test_no_texts_have_no_vectors_of_the_same_width(task, size):
    one = pipeline(task)
    vectors = one.embed([])
    assert vectors.shape == (0, size) and one.embed(["some"]).shape == (1, size)
    assert vectors.dtype == one.embed("some").dtype


@torch.no_grad()
@pytest.mark.parametrize("task", ["language-modeling", "seq2seq"])
def test_otherwise_it_is_the_mean_of_hidden_states(task):
    one = pipeline(task)
    for text, vector in zip(("some text", "café"), one.embed(["some text", "café"])):
        ids = torch.tensor([BYTES.encode(text)])
        hidden = one.model.encode(ids).hidden if task == "seq2seq" else one.model(ids, readout=lambda hidden, head: hidden)
        torch.testing.assert_close(vector, hidden[0].mean(dim=0))


@torch.no_grad()
def test_an_explanation_tells_how_likely_each_token_was():
    one, text = pipeline("language-modeling"), "some naïve text"
    ids, found = BYTES.encode(text), one.explain(text, likeliest=3)
    assert found.tokens[0] == "<bos>" and len(found.tokens) == len(ids) and found.source == []
    logprobs = one.model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    assert found.logprobs[0] is None
    assert found.logprobs[1:] == pytest.approx([float(logprobs[t, token]) for t, token in enumerate(ids[1:])], abs=1e-5)
    assert found.likeliest[0] == [] and all(len(best) == 3 for best in found.likeliest[1:])
    best = int(logprobs[0].argmax())
    assert found.likeliest[1][0][1] == pytest.approx(math.exp(float(logprobs[0, best])), abs=1e-5)
    ended = float(logprobs[-1, BYTES.eos_id])
    assert sum(found.logprobs[1:]) + ended == pytest.approx(-one.predict(text)["nats"], abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["mha", {"name": "mha", "window": 3, "softcap": 5.0, "sinks": True}, "mla"])
def test_attention_maps_are_the_weights_that_were_used(attention):
    one, text = pipeline("language-modeling", attention=attention), "some text"
    before = [block.attention.kernel for block in one.model.stack.layers]
    outputs, T = one.model(torch.tensor([BYTES.encode(text)])), len(BYTES.encode(text))
    maps = one.explain(text).attention
    assert set(maps) == {"stack.blocks.0.attention", "stack.blocks.1.attention"}
    for weights in maps.values():
        assert weights.shape == (2, T, T) and not weights.triu(1).any()
        sums = weights.sum(dim=-1)
        assert (sums < 1).all() if isinstance(attention, dict) else torch.allclose(sums, torch.ones_like(sums))
        assert not isinstance(attention, dict) or not weights.tril(-3).any()
    assert [block.attention.kernel for block in one.model.stack.layers] == before
    assert torch.equal(one.model(torch.tensor([BYTES.encode(text)])), outputs)


def kernels(model):
    return [module.kernel for module in model.modules() if hasattr(module, "kernel")]


@torch.no_grad()
def test_attention_maps_are_those_of_who_asked():
    one, (short, long) = pipeline("language-modeling"), ("some", "some longer text")
    before, ids = kernels(one.model), torch.tensor([BYTES.encode(long)])
    outputs = one.model(ids)
    with ThreadPoolExecutor(1) as pool, attention_maps(one.model) as maps:
        other = pool.submit(one.explain, short).result()
        assert not maps
        one.model(ids)
        plain = pool.submit(one.model, ids).result()
    assert torch.equal(plain, outputs), "others are computed by the model's own kernels"
    for name, weights in one.explain(long).attention.items():
        assert torch.equal(maps[name][0], weights)
        assert torch.equal(other.attention[name], one.explain(short).attention[name])
    assert kernels(one.model) == before


@torch.no_grad()
@pytest.mark.parametrize("first_out", [0, 1])
def test_attention_maps_end_in_any_order_and_leave_the_model_as_it_was(first_out):
    one = pipeline("language-modeling")
    before, asked, out = kernels(one.model), [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def ask(i):
        with attention_maps(one.model):
            asked[i].set()
            out[i].wait(10)

    threads = [threading.Thread(target=ask, args=[i]) for i in range(2)]
    for thread, ready in zip(threads, asked, strict=True):
        thread.start()
        ready.wait(10)
    for i in (first_out, 1 - first_out):
        out[i].set()
        threads[i].join()
    assert kernels(one.model) == before
    with pytest.raises(KeyError), attention_maps(one.model):
        raise KeyError
    assert kernels(one.model) == before


@torch.no_grad()
def test_attention_maps_within_others_are_noted_by_both():
    one, ids = pipeline("language-modeling"), torch.tensor([BYTES.encode("some")])
    with attention_maps(one.model) as outer:
        with attention_maps(one.model) as inner:
            one.model(ids)
        assert outer.keys() == inner.keys() and all(torch.equal(outer[name], inner[name]) for name in inner)
        outer.clear()
        one.model(ids)
    assert outer.keys() == inner.keys()


@pytest.mark.parametrize("prompts", [3, None, b"some", ["some", 3]])
def test_prompts_that_are_no_texts_are_told(prompts):
    with pytest.raises(UserError, match=r"prompts?: expected a text"):
        pipeline("language-modeling").generate(prompts, max_new_tokens=1)


@pytest.mark.parametrize("likeliest", [-1, None, 2.5])
def test_a_count_that_is_none_is_told(likeliest):
    with pytest.raises(UserError, match="likeliest: expected a whole number, not negative; found"):
        pipeline("language-modeling").explain("some", likeliest=likeliest)
    if likeliest is not None:
        with pytest.raises(UserError, match="beams: expected a whole number, not negative; found"):
            pipeline("language-modeling").generate("some", beams=likeliest)


def test_an_attention_without_weights_gives_no_map():
    assert pipeline("language-modeling", attention="linear").explain("some text").attention == {}


@torch.no_grad()
def test_an_answer_is_explained_with_what_it_looks_at():
    one = pipeline("seq2seq")
    found = one.explain("some text", "café")
    S, T = len(found.source), len(found.tokens)
    assert found.tokens == ["<bos>", *found.tokens[1:]] and len(BYTES.encode("café")) == T
    assert found.attention["encoder.blocks.0.attention"].shape == (2, S, S)
    assert found.attention["decoder.blocks.1.attention"].shape == (2, T, T)
    assert found.attention["decoder.blocks.1.cross"].shape == (2, T, S)
    source, target = (torch.tensor([BYTES.encode(text)]) for text in ("some text", "café"))
    logprobs = one.model(source, target)[0][0].log_softmax(dim=-1)
    assert found.logprobs[1:] == pytest.approx([float(logprobs[t, i]) for t, i in enumerate(target[0, 1:])], abs=1e-5)
    written = one.generate("some text", temperature=0)
    assert one.explain("some text").tokens == one.explain("some text", written).tokens


def test_an_encoder_is_explained_by_its_attention_alone():
    found = pipeline({"name": "classification", "labels": ["few", "many"]}).explain("some text")
    assert found.logprobs == found.likeliest == []
    assert not all((weights.triu(1) == 0).all() for weights in found.attention.values())


def test_a_text_that_is_too_long_to_explain_is_told():
    with pytest.raises(UserError, match="max_seq_len is 64; shorten it"):
        pipeline("language-modeling").explain("some text " * 40)


def test_a_model_that_reads_numbers_embeds_no_texts():
    task = build(Task, {"name": "regression", "features": [[0.0, 1.0]]})
    with pytest.raises(UserError, match="reads series of numbers, not texts"):
        Pipeline(Trained(model_for(task, 10), BYTES, task)).embed("some")
