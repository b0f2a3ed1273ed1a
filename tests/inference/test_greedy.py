"""Greedy decoding with state is greedy decoding by whole passes, token for token, for every registered attention with every
registered position encoding, in a decoder and beside an encoder, alone and in ragged batches, by growing and static states."""

from itertools import product

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_step import plain_step

from miniformer.config.model_config import TransformerConfig
from miniformer.decoding import compiled as static
from miniformer.decoding.compiled import StaticFeed
from miniformer.decoding.loop import decode, start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.decoding.state import BufferState
from miniformer.kernel import Layout, SpecError, StateError, current_registry
from miniformer.model.assemblies import assembly_for

V = 13
ATTENTIONS, POSITIONS = ([entry.name for entry in current_registry().entries(kind)] for kind in ("attention", "position"))
prompts = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=9), min_size=5, max_size=5)


@pytest.fixture(autouse=True, scope="module")
def static_steps_begin_anew_soon():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "COLUMNS", 4)
        yield


def allowed(attention, position, has_source):
    try:
        return TransformerConfig(vocab_size=V, d_model=16, n_heads=2, n_layers=2, d_ff=16, max_seq_len=32, attention=attention,
                                 position=position, causal=not has_source, head={"name": "lm", "tied": False})
    except SpecError:  # what cannot be combined is listed in tests/model/test_combinations.py
        return None


CASES = [(f"{a}+{p}+{'encoder-decoder' if s else 'decoder'}", config, s)
         for s, a, p in product((False, True), ATTENTIONS, POSITIONS) if (config := allowed(a, p, s))]


@torch.no_grad()
def naive(model, prompt, count):
    written = []
    for _ in range(count):
        if model.has_source:
            logits = model(torch.tensor([prompt]), torch.tensor([[model.config.bos_id, *written]]))[0]
        else:
            logits = model(torch.tensor([[*prompt, *written]]))
        written.append(int(logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize(("config", "has_source"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_with_state_it_is_what_whole_passes_give(config, has_source):
    torch.manual_seed(1)
    model = assembly_for(has_source)(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)

    @settings(max_examples=3 if depth.is_thorough() else 1)
    @given(prompts, st.sampled_from(["left", "right"]))
    def holds(rows, side):
        layout = Layout.from_lengths([len(row) for row in rows], side=side)
        ids = torch.zeros(layout.shape, dtype=torch.long)
        ids[layout.real] = torch.tensor([token for row in rows for token in row])
        expected = [naive(model, row, 6) for row in rows]
        found = model.generate(ids, 6, do_sample=False, layout=layout)[:, 0 if has_source else ids.shape[1]:]
        assert found.tolist() == expected
        try:
            feed = StaticFeed(model.feed(ids, 6, layout=layout), plain_step)
        except StateError:
            assert not all(state is None or isinstance(state, BufferState) for state in model.feed(ids, 6).state.layers)
        else:
            texts = start_texts(feed, [6, 4, 6, 1, 5], [None] * 5)  # some end before others
            with torch.no_grad():
                list(decode(feed, texts, Sampling(temperature=0)))
            assert [text.new for text in texts] == [row[:text.limit] for row, text in zip(expected, texts, strict=True)]
        alone = model.generate(torch.tensor(rows[:1]), 6, do_sample=False)[:, 0 if has_source else len(rows[0]):]
        assert alone.tolist() == expected[:1]

    holds()
