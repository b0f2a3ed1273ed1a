"""Language modelling with encoder and decoder: the target is predicted from the source and never seen by the encoder."""

import math
import random

import depth
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level
from small_tokenizers import TEXTS as VARIED

from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.task import Batch, Example, Source, Split
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.tasks.language_modeling import TextRecord
from miniformer.tasks.prefix_lm import PrefixLanguageModeling

TASK = PrefixLanguageModeling()
TOKENIZER = Tokenizer.train(["the cat sat on the mat", "naïve café 🦜"] * 20, 290)
V = TOKENIZER.vocab_size
TEXTS = ["the cat", "", "a naïve 🦜 on the café mat", "x"]
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def model(vocab_size=V, **fields):
    torch.manual_seed(0)
    return Seq2SeqTransformer(TransformerConfig(**{"vocab_size": vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2,
                                                   "d_ff": 16, "max_seq_len": 32, **fields})).double().eval()


MODEL = model()


def pieces(text, limit=None, task=TASK):
    return task.examples(TextRecord(text=text), TOKENIZER, limit)


def encoded(texts=TEXTS):
    return Split([TextRecord(text=text) for text in texts], [piece for text in texts for piece in pieces(text)])


@settings(max_examples=depth.examples(30))
@given(st.text("the cat naïve", max_size=40), st.none() | st.integers(2, 12), st.sampled_from([0.1, 0.5, 0.9]))
def test_pieces_are_the_document_cut_and_each_piece_split_in_two(text, limit, part):
    whole = [*TOKENIZER.encode(text), EOS]
    found = pieces(text, limit, PrefixLanguageModeling(part=part))
    start = 0
    for piece in found:
        n = min(limit or len(whole), len(whole) - start)
        k = max(1, math.floor(part * n))
        assert list(piece.source) == whole[start:start + k]
        assert list(piece.tokens) == [BOS, *whole[start + k:start + n]]
        start += n
    assert len(whole) - start in (0, 1), "a last single token would have no target"


def test_the_split_is_always_the_same():
    assert pieces("the cat sat on the mat", 7) == pieces("the cat sat on the mat", 7)


def naive_nats(piece):
    total = 0.0
    with torch.no_grad():
        for stop in range(1, len(piece.tokens)):
            logits = MODEL(torch.tensor([piece.source]), torch.tensor([piece.tokens[:stop]]))[0][0, -1]
            total -= float(logits[piece.tokens[stop]] - logits.exp().sum().log())
    return total


def run(examples, read):
    batch = TASK.collate(examples)
    with torch.no_grad():
        return MODEL.read(batch, readout=lambda hidden, head: read(hidden, head, batch))


def test_the_loss_is_the_cross_entropy_of_the_targets_alone():
    found = [piece for text in TEXTS for piece in pieces(text, 6)]
    term = run(found, TASK.loss)
    assert float(term.sum) == pytest.approx(sum(map(naive_nats, found)), abs=1e-9)
    assert int(term.weight) == sum(len(piece.tokens) - 1 for piece in found)


def test_bits_per_byte_count_the_bytes_of_targets_alone():
    found, metrics = encoded().examples, TASK.metrics(TOKENIZER)
    for part in (found[:2], found[2:]):
        run(part, lambda hidden, head, batch: TASK.update(metrics, hidden, head, batch, TASK.loss(hidden, head, batch)))
    lengths = TOKENIZER.byte_lengths()
    n_bytes = sum(lengths[i] for piece in found for i in piece.tokens[1:])
    nats = sum(map(naive_nats, found))
    assert n_bytes < sum(len(text.encode()) for text in TEXTS)
    assert float(metrics["bits_per_byte"].compute()) == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-9)


@pytest.mark.parametrize("make", KINDS)
def test_the_bytes_of_targets_are_those_of_the_text_from_source_to_end(make):
    tokenizer = make()
    lengths, whole = tokenizer.byte_lengths(), 0
    for text in VARIED:
        ids, counts = tokenizer.encode(text), tokenizer.byte_counts(text) or [lengths[i] for i in tokenizer.encode(text)]
        parts = TASK.examples(TextRecord(text=text), tokenizer, 6)
        assert parts and sum(len(part.source) + len(part.tokens) - 1 for part in parts) >= len(ids)
        batch, end = TASK.collate(parts), 0
        for n, part in enumerate(parts):
            start = end + len(part.source)
            end = start + len(part.tokens) - 1
            if make is byte_level:
                assert "bytes" not in batch.targets, "the metric knows the bytes of each token"
            else:
                assert int(batch.targets["bytes"][n].sum()) == sum(counts[start:end])
        whole += sum(counts)
        assert TASK.cut(parts[0], 1).byte_counts == (None if make is byte_level else parts[0].byte_counts[:2])
    assert whole == sum(len(text.encode()) for text in VARIED)


def test_a_document_without_text_has_a_row_and_nothing_to_say():
    tokenless = Tokenizer.of(TOKENIZER.backend)
    tokenless.eos_id = None
    [piece] = TASK.examples(TextRecord(text=""), tokenless, None)
    assert (list(piece.source), piece.tokens) == ([BOS], [BOS])
    assert int(run([piece], TASK.loss).weight) == 0


def test_the_baseline_is_that_of_the_targets_tokens():
    train, held_out = encoded(["the cat sat", "on the mat"]), encoded(["the 🦜", "mat"])
    known = [i for e in train.examples for i in e.tokens[1:]]
    wanted = [i for e in held_out.examples for i in e.tokens[1:]]
    nats = -sum(math.log((known.count(i) + 1) / (len(known) + V)) for i in wanted)
    assert TASK.baselines(train, held_out, TOKENIZER)["unigram"]["loss"] == pytest.approx(nats / len(wanted))


def test_an_answer_goes_on_from_the_whole_text():
    question = TASK.question(TextRecord(text="the cat sat on"), TOKENIZER)
    [answer] = TASK.answer(MODEL, TASK.collate([question]), TOKENIZER)
    ids = MODEL.generate(torch.tensor([TOKENIZER.encode("the cat sat on")]), 32, do_sample=False, eos_id=EOS)[0].tolist()
    assert answer == {"text": TOKENIZER.decode(ids[:ids.index(EOS)] if EOS in ids else ids)}


def test_a_text_that_is_too_long_is_gone_on_with_from_its_end():
    question = TASK.question(TextRecord(text="the cat sat on the mat"), TOKENIZER)
    assert TASK.cut(question, 3).source == question.source[-3:]


# --- the encoder never sees the target

def test_changing_the_target_changes_nothing_in_the_encoder():
    piece = pieces("the cat sat on the mat")[0]
    with torch.no_grad():
        hidden = [MODEL(torch.tensor([piece.source]), torch.tensor([target]))[1]
                  for target in (piece.tokens, [BOS] * len(piece.tokens))]
    assert torch.equal(*hidden)


def trained_on_noise(leak, steps=250, vocab_size=16):
    """The mean loss of targets of fresh noise, after some training on noise; with `leak` the encoder is given all."""
    noise = random.Random(0)
    torch.manual_seed(0)
    one = Seq2SeqTransformer(TransformerConfig(vocab_size=vocab_size, d_model=32, n_heads=2, n_layers=2, d_ff=32,
                                               max_seq_len=32))
    optimizer = torch.optim.AdamW(one.parameters(), lr=5e-3)

    def term(rows):
        examples = []
        for _ in range(rows):
            tokens = [noise.randrange(vocab_size) for _ in range(noise.randint(4, 16))]
            k = max(1, len(tokens) // 2)
            examples.append(Example([0, *tokens[k:]], source=tokens[:k]))
        batch = TASK.collate(examples)
        if leak:
            leaked = TASK.collate([Example(e.tokens, source=[*e.source, *e.tokens[1:]]) for e in examples])
            batch = Batch(batch.inputs, batch.layout, batch.targets, Source(*leaked.source))
        return one.read(batch, readout=lambda hidden, head: TASK.loss(hidden, head, batch))

    for _ in range(steps):
        loss = term(32)
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    with torch.no_grad():
        total = term(600)
    return float(total.sum / total.weight)


def test_noise_cannot_be_learnt():
    assert trained_on_noise(leak=False) > math.log(16) - 0.02


def test_an_encoder_that_saw_the_target_would_be_found_out():
    """The test above can fail."""
    assert trained_on_noise(leak=True) < math.log(16) - 0.3


def test_a_length_without_room_for_a_target_is_refused():
    with pytest.raises(ValueError, match="max_seq_len 1 leaves nothing to write after a source; expected at least 2"):
        TASK.examples(TextRecord(text="the cat"), TOKENIZER, 1)
