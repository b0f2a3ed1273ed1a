"""Language modelling: loss, metrics, baselines and predictions against direct computation; no leak of what is next."""

import json
import lzma
import math
import random
from collections import Counter

import depth
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, unigram
from small_tokenizers import TEXTS as VARIED

from miniformer.config.model_config import TransformerConfig
from miniformer.data.packing import PackedRows
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Context
from miniformer.kernel.task import Example, Split
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling, TextRecord

TASK = LanguageModeling()
TOKENIZER = Tokenizer.train(["the cat sat on the mat", "naïve café 🦜"] * 20, 290)
TEXTS = ["the cat", "", "a naïve 🦜 on the café mat", "x"]
V = TOKENIZER.vocab_size

documents = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=8), min_size=1, max_size=5)


def model(vocab_size=V, **fields):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**{"vocab_size": vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2,
                                            "d_ff": 16, "max_seq_len": 32, "causal": True, **fields})).double().eval()


MODEL = model()


def batch_of(texts, length=32):
    return TASK.collate(list(PackedRows([Example(tokens) for tokens in texts], length)))


def run(batch, read, model=MODEL):
    with torch.no_grad():
        return model(batch.inputs, Context(batch.layout), readout=read)


def loss_of(batch, model=MODEL):
    return run(batch, lambda hidden, head: TASK.loss(hidden, head, batch), model)


def naive_nats(tokens, model=MODEL):
    """The summed loss of one document, one prediction at a time."""
    total = 0.0
    with torch.no_grad():
        for stop in range(1, len(tokens)):
            logits = model(torch.tensor([tokens[:stop]]))[0, -1]
            total -= float(logits[tokens[stop]] - logits.exp().sum().log())
    return total


def encoded(texts=TEXTS):
    records = [TextRecord(text=text) for text in texts]
    return Split(records, [TASK.encode(record, TOKENIZER) for record in records])


def test_an_example_is_the_text_between_start_and_end():
    ids = TASK.encode(TextRecord(text="the cat"), TOKENIZER).tokens
    assert (ids[0], ids[-1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)
    assert TOKENIZER.decode(ids) == "the cat"


def test_without_an_end_token_an_example_is_the_text():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    endless = Tokenizer.of(Backend(models.WordLevel({"a": 0})))
    assert TASK.encode(TextRecord(text="a"), endless).tokens == [0]


@settings(max_examples=depth.examples(15), deadline=None)
@given(documents)
def test_the_loss_is_the_cross_entropy_of_next_tokens_within_documents(texts):
    term = loss_of(batch_of(texts, length=40))
    assert float(term.sum) == pytest.approx(sum(map(naive_nats, texts)), abs=1e-9)
    assert int(term.weight) == sum(len(tokens) - 1 for tokens in texts)


@settings(max_examples=depth.examples(15), deadline=None)
@given(documents)
def test_a_document_loses_the_same_in_a_packed_row_as_alone(texts):
    together = loss_of(batch_of(texts, length=40))
    alone = [loss_of(batch_of([tokens], length=len(tokens))) for tokens in texts]
    torch.testing.assert_close(together.sum, sum(term.sum for term in alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rope"])
@pytest.mark.parametrize("attention", ["mha", {"name": "mha", "window": 3}, {"name": "mha", "n_kv_heads": 1}])
def test_each_document_of_a_packed_row_loses_what_it_loses_alone(position, attention):
    one = model(position=position, attention=attention)
    texts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
    batch = batch_of(texts, length=16)
    following = batch.targets["following"][0]
    logits = run(batch, lambda hidden, head: head(hidden), one)[0]
    nats = F.cross_entropy(logits, following, ignore_index=-1, reduction="none")
    packed = [nats[batch.layout.documents[0] == d + 1].sum() for d in range(len(texts))]
    alone = [loss_of(batch_of([tokens], length=len(tokens)), one).sum for tokens in texts]
    torch.testing.assert_close(torch.stack(packed), torch.stack(alone), rtol=0, atol=1e-10)


def test_losses_of_parts_of_a_batch_add_up():
    rows = list(PackedRows([Example(list(range(i, i + 7))) for i in range(12)], 10))
    whole = loss_of(TASK.collate(rows))
    parts = [loss_of(TASK.collate(rows[i:j])) for i, j in [(0, 1), (1, 4), (4, len(rows))]]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=0, atol=1e-10)
    assert sum(int(part.weight) for part in parts) == int(whole.weight)


def test_the_loss_of_a_half_precision_model_is_summed_in_single():
    half = model().to(torch.bfloat16)
    assert loss_of(batch_of([[1, 2, 3]]), half).sum.dtype == torch.float32


def test_a_batch_without_predictions_has_no_weight():
    term = loss_of(batch_of([[5]], length=1))
    assert (float(term.sum), int(term.weight)) == (0.0, 0)


def test_the_head_is_as_wide_as_the_vocabulary():
    assert TASK.n_outputs(290) == 290


def test_metrics_are_those_of_the_whole_pass():
    examples = encoded().examples
    metrics = TASK.metrics(TOKENIZER)
    rows = list(PackedRows(examples, 6))
    for part in (rows[:2], rows[2:]):
        batch = TASK.collate(part)

        def measure(hidden, head, batch=batch):
            TASK.update(metrics, hidden, head, batch, TASK.loss(hidden, head, batch))

        run(batch, measure)
    nats = sum(run(b := TASK.collate([row]), lambda hidden, head, b=b: TASK.loss(hidden, head, b)).sum for row in rows)
    tokens, n_bytes = sum(len(e.tokens) - 1 for e in examples), sum(len(text.encode()) for text in TEXTS)
    assert float(metrics["perplexity"].compute()) == pytest.approx(math.exp(nats / tokens), rel=1e-9)
    assert float(metrics["bits_per_byte"].compute()) == pytest.approx(float(nats) / math.log(2) / n_bytes, rel=1e-9)


@pytest.mark.parametrize("make", KINDS)
def test_bits_per_byte_are_those_of_the_bytes_of_the_text_whatever_the_tokenizer_makes_of_it(make):
    """Spaces that it drops, letters that it changes and what it does not know are text that was to be predicted."""
    tokenizer = make()
    examples = [TASK.encode(TextRecord(text=text), tokenizer) for text in VARIED]
    unscored = 0  # without a start token, the first token of a text is not predicted
    if tokenizer.bos_id is None:
        unscored = sum(example.byte_counts[0] for example in examples)
        assert 0 < unscored < 10
    small, metrics = model(tokenizer.vocab_size), TASK.metrics(tokenizer)
    batch = TASK.collate(list(PackedRows(examples, 7)))
    term = loss_of(batch, small)
    run(batch, lambda hidden, head: TASK.update(metrics, hidden, head, batch, term), small)
    n_bytes = sum(len(text.encode()) for text in VARIED) - unscored
    assert float(metrics["bits_per_byte"].compute()) == pytest.approx(float(term.sum) / math.log(2) / n_bytes, rel=1e-9)
    split = Split([TextRecord(text=text) for text in VARIED], examples)
    found = TASK.baselines(split, split, tokenizer)["unigram"]
    tokens = sum(len(example.tokens) - 1 for example in examples)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * tokens / math.log(2) / n_bytes)


def test_the_bytes_of_a_tokenizer_with_ids_of_its_own_are_those_of_its_tokens():
    class Doubled(Tokenizer):
        def encode_whole(self, text):
            return [i for i in super().encode_whole(text) for _ in range(2)]

    assert TASK.encode(TextRecord(text="a b"), Doubled(unigram().backend)).byte_counts is None


def test_the_unigram_baseline_is_that_of_counted_tokens():
    train, held_out = encoded(["the cat sat", "on the mat"]), encoded(["the 🦜", "", "mat"])
    known = Counter(i for e in train.examples for i in e.tokens[1:])
    total = sum(known.values()) + V
    wanted = [i for e in held_out.examples for i in e.tokens[1:]]
    nats = -sum(math.log((known[i] + 1) / total) for i in wanted)
    found = TASK.baselines(train, held_out, TOKENIZER)["unigram"]
    assert found["loss"] == pytest.approx(nats / len(wanted))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len("the 🦜mat".encode()))


def test_the_xz_baseline_is_that_of_the_held_out_text():
    texts = ["the cat sat " * 20, "naïve " * 20]
    joined = "\n".join(texts).encode()
    found = TASK.baselines(encoded(["a"]), encoded(texts), TOKENIZER)["xz -9"]
    assert found == {"bits_per_byte": 8 * len(lzma.compress(joined, preset=9)) / len(joined)}


def test_baselines_are_plain_numbers():
    assert json.loads(json.dumps(TASK.baselines(encoded(), encoded(), TOKENIZER))).keys() == {"unigram", "xz -9"}


def test_baselines_of_documents_without_predictions_are_numbers():
    lone = Split([TextRecord(text="")], [Example([2])])
    assert TASK.baselines(lone, lone, TOKENIZER)["unigram"] == {"loss": 0.0, "bits_per_byte": 0.0}


def test_a_prediction_is_the_loss_of_each_row():
    texts = [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    batch = batch_of(texts, length=4)
    predictions = run(batch, lambda hidden, head: TASK.predict(hidden, head, batch))
    assert [row["tokens"] for row in predictions] == [3, 3, 0]
    assert [row["nats"] for row in predictions] == pytest.approx([naive_nats(tokens) for tokens in texts], abs=1e-9)
    json.dumps(predictions)


def trained_on_noise(causal, vocab_size=16, steps=300):
    """The mean loss on fresh noise, after some training on noise."""
    noise = random.Random(0)
    torch.manual_seed(0)
    one = Transformer(TransformerConfig(vocab_size=vocab_size, d_model=32, n_heads=2, n_layers=2, d_ff=32,
                                        max_seq_len=16, causal=causal))
    optimizer = torch.optim.AdamW(one.parameters(), lr=5e-3)

    def term(rows):
        texts = [[noise.randrange(vocab_size) for _ in range(noise.randint(4, 20))] for _ in range(rows * 2)]
        batch = TASK.collate(list(PackedRows([Example(tokens) for tokens in texts], 16)))
        return one(batch.inputs, Context(batch.layout), readout=lambda hidden, head: TASK.loss(hidden, head, batch))

    for _ in range(steps):
        loss = term(16)
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    with torch.no_grad():
        total = term(400)
    return float(total.sum / total.weight)


def test_a_causal_model_learns_nothing_of_noise():
    """Were the next token visible anywhere (masks, packing, targets), the loss would fall below ln V."""
    assert trained_on_noise(causal=True) > math.log(16) - 0.02


def test_a_model_that_sees_what_is_next_would_be_found_out():
    """The test above can fail."""
    assert trained_on_noise(causal=False) < math.log(16) - 0.3
