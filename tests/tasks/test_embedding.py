"""Embedding: InfoNCE in both directions, retrieval among all that was seen, and texts that equal the right one."""

import json
import math

import pytest
import torch
from task_models import loss_of, measured, model_for, outputs_of, predictions_of

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.task import Split
from miniformer.tasks.embedding import AnchorInput, Embedding, MeanReciprocalRank, PairRecord, RecallAt

TASK = Embedding(size=6, temperature=0.5)
TOKENIZER = Tokenizer.train(["some words"], 261)
PAIRS = [("a", "first"), ("bb", "second"), ("ccc", "third"), ("dd", "second"), ("a", "fourth")]
RECORDS = [PairRecord(anchor=anchor, positive=positive) for anchor, positive in PAIRS]
EXAMPLES = [TASK.encode(record, TOKENIZER) for record in RECORDS]
MODEL = model_for(TASK, 261)
BATCH = TASK.collate(EXAMPLES)


def vector(text):
    return outputs_of(MODEL, TOKENIZER.encode(text)).tolist()


def dot(a, b):
    return sum(x * y for x, y in zip(vector(a), vector(b)))


def one_way(pairs):
    """The cross-entropy of the right answer among the batch's, those that equal it left out, summed."""
    total = 0.0
    for i, (asked, right) in enumerate(pairs):
        answers = [answer for j, (_, answer) in enumerate(pairs) if j == i or answer != right]
        total += math.log(sum(math.exp(dot(asked, answer) / 0.5) for answer in answers)) - dot(asked, right) / 0.5
    return total


def test_the_loss_is_the_mean_of_both_directions():
    term = loss_of(MODEL, TASK, BATCH)
    assert float(term.sum) == pytest.approx((one_way(PAIRS) + one_way([(b, a) for a, b in PAIRS])) / 2, abs=1e-9)
    assert int(term.weight) == len(PAIRS)


def test_a_pair_alone_has_nothing_to_be_told_from():
    assert float(loss_of(MODEL, TASK, TASK.collate(EXAMPLES[:1])).sum) == pytest.approx(0, abs=1e-12)


def test_a_larger_batch_is_a_harder_question():
    whole = float(loss_of(MODEL, TASK, BATCH).sum)
    parts = sum(float(loss_of(MODEL, TASK, TASK.collate(part)).sum) for part in (EXAMPLES[:2], EXAMPLES[2:]))
    assert parts < whole
    assert not TASK.additive


def ranks():
    """The rank of each right answer among the different ones, by loops."""
    answers = sorted({positive for _, positive in PAIRS})
    return [1 + sum(dot(anchor, other) >= dot(anchor, right) for other in answers if other != right) for anchor, right in PAIRS]


def test_retrieval_is_among_all_different_positives_that_were_seen():
    found = measured(MODEL, TASK, TOKENIZER, [TASK.collate(EXAMPLES[:2]), TASK.collate(EXAMPLES[2:])])
    assert found["recall_at_1"] == pytest.approx(sum(rank <= 1 for rank in ranks()) / 5)
    assert found["recall_at_10"] == 1
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in ranks()) / 5)


def test_one_vector_for_everything_retrieves_nothing():
    same, texts = torch.ones(20, 3), torch.arange(20)
    metrics = [RecallAt(1), RecallAt(10), MeanReciprocalRank()]
    for metric in metrics:
        metric.update(same, same, texts)
    assert [float(metric.compute()) for metric in metrics] == [0, 0, pytest.approx(1 / 20)]


def test_ranks_of_many_are_those_of_few():
    generator = torch.Generator().manual_seed(0)
    anchors, positives = torch.randn(2, 1500, 4, generator=generator)
    metric = MeanReciprocalRank()
    metric.update(anchors, positives, torch.arange(1500))
    scores = anchors @ positives.T
    expected = 1 + (scores > scores.diagonal()[:, None]).sum(dim=1)
    assert torch.equal(metric.ranks(), expected)


def test_a_prediction_is_the_vector_of_the_anchor_of_length_1():
    asked = [TASK.question(AnchorInput(anchor=anchor), TOKENIZER) for anchor, _ in PAIRS]
    for batch in (BATCH, TASK.collate(asked)):
        found = predictions_of(MODEL, TASK, batch)
        assert [row["embedding"] for row in found] == [pytest.approx(vector(anchor), abs=1e-6) for anchor, _ in PAIRS]
        assert json.loads(json.dumps(found)) == found
    assert sum(x * x for x in found[0]["embedding"]) == pytest.approx(1, abs=1e-5)


def test_both_texts_are_cut():
    cut = TASK.cut(TASK.encode(PairRecord(anchor="x" * 9, positive="y" * 9), TOKENIZER), 4)
    assert (len(cut.tokens), len(cut.target)) == (4, 4)
    assert TASK.cut(TASK.question(AnchorInput(anchor="x" * 9), TOKENIZER), 4).target is None


def test_the_baseline_is_an_order_by_chance():
    found = TASK.baselines(Split([], []), Split(RECORDS, EXAMPLES), TOKENIZER)
    mrr = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert found == {"any order": pytest.approx({"recall_at_1": 1 / 4, "recall_at_10": 1.0, "mrr": mrr})}


@pytest.mark.usefixtures("few_sources")
def test_the_embedded_pairs_are_names_and_what_is_said_of_them():
    pairs = {record.positive: record.anchor for _, record in Embedding().stdlib()}
    assert "engineering notation" in pairs["to_eng_string"]
    assert not any(name.startswith("__") for name in pairs)
