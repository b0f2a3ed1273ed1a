"""Sequence to sequence: examples, loss, metrics, baselines and answers against direct computation; padding is invisible."""

import json
import math
from collections import Counter

import pytest
import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import resolve
from miniformer.kernel.task import Split
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.tasks.seq2seq import PairRecord, Seq2Seq, SourceInput

TASK = Seq2Seq()
TOKENIZER = Tokenizer.train(["the cat sat on the mat", "naïve café 🦜"] * 20, 290)
V = TOKENIZER.vocab_size
PAIRS = [("the cat", "cat"), ("on", "the mat"), ("naïve 🦜", ""), ("the mat sat on", "naïve café"),
         ("sat", "the cat sat on the mat 🦜")]


def model():
    """A model that has learnt the first two pairs, and so knows where a text ends."""
    torch.manual_seed(0)
    one = Seq2SeqTransformer(TransformerConfig(vocab_size=V, d_model=16, n_heads=2, n_layers=2, d_ff=16, max_seq_len=32,
                                               bos_id=TOKENIZER.bos_id)).double()
    optimizer, batch = torch.optim.AdamW(one.parameters(), lr=2e-2), TASK.collate(split(PAIRS[:2]).examples)
    for _ in range(40):
        one.read(batch, readout=lambda hidden, head: TASK.loss(hidden, head, batch)).sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    return one.eval()


def split(pairs):
    records = [PairRecord(source=source, target=target) for source, target in pairs]
    return Split(records, [TASK.encode(record, TOKENIZER) for record in records])


EXAMPLES = split(PAIRS).examples
MODEL = model()


def run(examples, read):
    batch = TASK.collate(examples)
    with torch.no_grad():
        return MODEL.read(batch, readout=lambda hidden, head: read(hidden, head, batch))


def losses(example):
    """The loss of each token of a target, one prediction at a time."""
    found = []
    with torch.no_grad():
        for stop in range(1, len(example.tokens)):
            logits = MODEL(torch.tensor([example.source]), torch.tensor([example.tokens[:stop]]))[0][0, -1]
            found.append(-float(logits[example.tokens[stop]] - logits.exp().sum().log()))
    return found


def greedy(source):
    """What greedy decoding writes, by whole passes."""
    written = [TOKENIZER.bos_id]
    with torch.no_grad():
        while len(written) <= MODEL.config.max_seq_len:
            written.append(int(MODEL(torch.tensor([source]), torch.tensor([written]))[0][0, -1].argmax()))
            if written[-1] == TOKENIZER.eos_id:
                return written[1:-1]
    return written[1:]


def test_an_example_is_the_source_and_the_target_between_start_and_end():
    example = EXAMPLES[0]
    assert (example.tokens[0], example.tokens[-1]) == (TOKENIZER.bos_id, TOKENIZER.eos_id)
    assert example.tokens.count(TOKENIZER.bos_id) == 1
    assert TOKENIZER.decode(example.tokens) == "cat"
    assert example.source == TOKENIZER.encode("the cat")


def test_a_tokenizer_without_start_and_end_gives_targets_that_start_from_padding():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    plain = Tokenizer.of(Backend(models.WordLevel({"a": 1, "<pad>": 0})))
    assert TASK.encode(PairRecord(source="a", target="a"), plain).tokens == [0, 1]
    with pytest.raises(ValueError, match="field 'source' has no tokens"):
        TASK.encode(PairRecord(source="", target="a"), plain)


def test_source_and_target_are_cut_each_to_the_length_that_a_model_takes():
    record = PairRecord(source="the cat sat on the mat", target="naïve café 🦜")
    [example] = TASK.examples(record, TOKENIZER, 4)
    whole = TASK.encode(record, TOKENIZER)
    assert example.source == whole.source[:4]
    batch = TASK.collate([example])
    assert batch.inputs.tolist() == [whole.tokens[:4]]
    assert batch.targets["following"].tolist() == [whole.tokens[1:5]]


def test_labels_are_shifted_by_one_and_are_padded_with_nothing():
    batch = TASK.collate(EXAMPLES)
    for row, following, example in zip(batch.inputs.tolist(), batch.targets["following"].tolist(), EXAMPLES):
        n = len(example.tokens) - 1
        assert row[:n] == example.tokens[:-1] and following[:n] == example.tokens[1:]
        assert set(following[n:]) <= {-1}
    assert batch.source.layout.real.sum(dim=1).tolist() == [len(e.source) for e in EXAMPLES]


def test_a_batch_moves_with_its_source():
    batch = TASK.collate(EXAMPLES).to("meta")
    assert {t.device.type for t in (batch.inputs, batch.source.inputs, batch.source.layout.documents,
                                    batch.layout.positions, batch.targets["following"])} == {"meta"}


def test_the_loss_is_the_cross_entropy_of_the_targets():
    term = run(EXAMPLES, TASK.loss)
    assert float(term.sum) == pytest.approx(sum(sum(losses(e)) for e in EXAMPLES), abs=1e-9)
    assert int(term.weight) == sum(len(e.tokens) - 1 for e in EXAMPLES)


def test_losses_of_parts_of_a_batch_add_up():
    whole, parts = run(EXAMPLES, TASK.loss), [run(part, TASK.loss) for part in (EXAMPLES[:1], EXAMPLES[1:])]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=0, atol=1e-10)


def test_exact_match_is_that_of_greedy_decoding_and_accuracy_that_of_tokens():
    metrics = TASK.metrics(TOKENIZER)
    for part in (EXAMPLES[:1], EXAMPLES[1:]):
        run(part, lambda hidden, head, batch: TASK.update(metrics, hidden, head, batch, TASK.loss(hidden, head, batch)))
    exact = [greedy(e.source) == e.tokens[1:-1] for e in EXAMPLES]
    assert float(metrics["exact_match"].compute()) == pytest.approx(sum(exact) / len(exact))
    assert exact[:2] == [True, True] and sum(exact) < len(exact)
    hits = []
    with torch.no_grad():
        for e in EXAMPLES:
            said = MODEL(torch.tensor([e.source]), torch.tensor([e.tokens[:-1]]))[0][0].argmax(-1).tolist()
            hits += [a == b for a, b in zip(said, e.tokens[1:])]
    assert float(metrics["accuracy"].compute()) == pytest.approx(sum(hits) / len(hits))
    nats = [loss for e in EXAMPLES for loss in losses(e)]
    assert float(metrics["perplexity"].compute()) == pytest.approx(math.exp(sum(nats) / len(nats)))


def test_baselines_are_counted_tokens_and_the_commonest_target():
    train, held_out = split([("a", "cat"), ("b", "cat"), ("c", "mat")]), split([("d", "cat"), ("e", "the")])
    found = TASK.baselines(train, held_out, TOKENIZER)
    known = Counter(i for e in train.examples for i in e.tokens[1:])
    wanted = [i for e in held_out.examples for i in e.tokens[1:]]
    total = sum(known.values()) + V
    assert found["unigram"]["loss"] == pytest.approx(-sum(math.log((known[i] + 1) / total) for i in wanted) / len(wanted))
    assert found["unigram"]["accuracy"] == pytest.approx(wanted.count(known.most_common(1)[0][0]) / len(wanted))
    assert found["the commonest target"] == {"exact_match": 0.5}


def test_a_prediction_from_hidden_states_is_the_loss_of_the_target():
    rows = run(EXAMPLES, TASK.predict)
    assert [row["nats"] for row in rows] == pytest.approx([sum(losses(e)) for e in EXAMPLES])
    assert [row["tokens"] for row in rows] == [len(e.tokens) - 1 for e in EXAMPLES]


def test_an_answer_is_the_text_that_greedy_decoding_writes_for_the_source_alone():
    questions = [TASK.question(SourceInput(source=source), TOKENIZER) for source, _ in PAIRS]
    answers = TASK.answer(MODEL, TASK.collate(questions), TOKENIZER)
    assert answers == [{"target": TOKENIZER.decode(greedy(e.source))} for e in EXAMPLES]
    assert answers == TASK.answer(MODEL, TASK.collate(EXAMPLES), TOKENIZER), "the target is not looked at"
    assert json.loads(json.dumps(answers)) == answers
    assert len({row["target"] for row in answers}) > 1


@pytest.mark.usefixtures("few_sources")
def test_the_embedded_records_are_docstrings_and_names():
    records = {where: record for where, record in TASK.stdlib() if where.startswith("glob.py")}
    assert any(record.target == "glob" and "pathname pattern" in record.source for record in records.values())
    assert all(record.target.isidentifier() for record in records.values())


def test_it_is_a_task_for_an_encoder_and_a_decoder():
    assert (TASK.has_source, TASK.causal, TASK.packs) == (True, False, False)
    assert resolve("task", "seq2seq").options == {}
