"""Continuous batching: prompts join a running batch when others have ended, and are answered as they would be alone."""

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_models import BYTES, writing

from miniformer.decoding.sampling import Allowed, Sampling
from miniformer.inference.engine import Engine
from miniformer.kernel import Attention, Entry, Registry, discover, use_registry
from miniformer.kernel.state import State

MODELS = {
    "decoder": writing(), "mla": writing(attention="mla", position="alibi"), "linear": writing(attention="linear"),
    "window": writing(attention={"name": "mha", "window": 5}), "learned": writing(position="learned", max_seq_len=40),
    "encoder-decoder": writing(has_source=True), "learned encoder-decoder": writing(has_source=True, position="learned",
                                                                                    max_seq_len=40)}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
some_prompts = st.lists(st.text("ab é東", max_size=12), min_size=1, max_size=14)


class EndsSometimes:
    """Ends texts after numbers of tokens that hang on their prompt alone."""

    def __call__(self, logits, text):
        ends = len(text.new) >= 1 + sum(text.new[:1]) % 9
        return Allowed(lambda _: [BYTES.eos_id])(logits, text) if ends else logits


SAMPLING = Sampling(temperature=1.5, processors=(EndsSometimes(),))


def told(answers):
    return [(answer.prompt, answer.tokens, answer.text, answer.finish_reason) for answer in answers]


@models
@settings(max_examples=depth.examples(12))
@given(some_prompts, st.integers(1, 6), st.booleans())
def test_a_prompt_is_answered_as_it_would_be_alone(model, prompts, size, use_state):
    engine = Engine(model, BYTES, batch_size=size, use_state=use_state)
    given = {"seed": 5, "max_new_tokens": 12}
    alone = [next(engine.generate([prompt], SAMPLING, **given)) for prompt in prompts]
    assert told(engine.generate(prompts, SAMPLING, **given)) == told(alone)


def passes(engine, prompts):
    """Rows of each pass of the model."""
    sizes = []
    hook = engine.model.register_forward_hook(lambda module, args, _: sizes.append(args[int(module.has_source)].shape))
    try:
        answers = list(engine.generate(prompts, SAMPLING, seed=5, max_new_tokens=12))
    finally:
        hook.remove()
    return sizes, answers


def test_places_that_are_free_are_taken_at_once():
    prompts = [f"some text {n}" for n in range(24)]
    sizes, answers = passes(Engine(MODELS["decoder"], BYTES, batch_size=4), prompts)
    steps, drawn = [B for B, T in sizes if T == 1], sum(len(answer.tokens) + 1 for answer in answers)
    assert {len(answer.tokens) for answer in answers} >= {1, 4, 9}
    assert max(steps) == 4 and drawn - len(answers) == sum(steps), "no row is computed that has ended"
    assert sum(B == 4 for B in steps) > 0.8 * len(steps), "the batch is full but at its end"


def test_texts_that_do_not_fit_beside_each_other_are_written_apart():
    """Aligned on the right, a short prompt's text would end beyond the model's positions where the long prompt's does not."""
    prompts = ["a", "ab" * 15, "b"]
    engine = Engine(MODELS["learned"], BYTES, batch_size=3)
    sizes, answers = passes(engine, prompts)
    assert [tuple(size) for size in sizes if size[1] > 1] == [(2, 2), (1, 31)]
    assert told(answers) == told(next(engine.generate([prompt], SAMPLING, seed=5, max_new_tokens=12)) for prompt in prompts)


class Sums(Attention):
    """The sum of what came before; its state takes in no rows."""

    causal_only, masked = True, False

    def forward(self, x, context, state=None):
        sums = (x * context.layout.real[..., None]).cumsum(dim=1)
        if state is not None:
            sums = sums + state.sums[:, None]
            state.sums, state.columns = sums[:, -1], state.columns + x.shape[1]
        return sums

    def init_state(self, batch, capacity):
        return SumState(torch.zeros(batch, self.d_model, dtype=torch.float64))


class SumState(State):
    truncates = False

    def __init__(self, sums):
        self.sums, self.columns = sums, 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return self.sums.nbytes

    def reorder(self, index):
        self.sums = self.sums[index]

    def truncate(self, length):
        raise NotImplementedError


def test_where_a_state_takes_in_no_rows_batches_run_one_after_another():
    with use_registry(Registry([*discover(), Entry("attention", "sums", f"{__name__}:Sums", "acme", "1")])):
        model = writing(attention="sums")
    prompts = [f"some text {n}" for n in range(9)]
    engine = Engine(model, BYTES, batch_size=4)
    sizes, answers = passes(engine, prompts)
    assert [B for B, T in sizes if T > 1] == [4, 4, 1]
    assert told(answers) == told(next(engine.generate([prompt], SAMPLING, seed=5, max_new_tokens=12)) for prompt in prompts)
