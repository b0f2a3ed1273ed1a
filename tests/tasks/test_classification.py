"""Classification: labels, loss, metrics and predictions against direct computation; padding is invisible."""

import json
import math

import pytest
import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Context, resolve
from miniformer.kernel.task import Split
from miniformer.model.transformer import Transformer
from miniformer.tasks.classification import Classification, LabelledRecord

LABELS = ("high", "low", "middle")
TASK = Classification(labels=LABELS)
TOKENIZER = Tokenizer.train(["some words"], 261)
RECORDS = [LabelledRecord(input="x" * n, label=LABELS[n % 3]) for n in (1, 5, 9, 2, 7, 3, 4, 4)]
EXAMPLES = [TASK.encode(record, TOKENIZER) for record in RECORDS]


def model(**fields):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**{"vocab_size": 261, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16,
                                            "max_seq_len": 16, "output_dim": 3, **fields})).double().eval()


MODEL = model()


def run(examples, read, model=MODEL):
    """What `read` makes of the hidden states, the head and the batch."""
    batch = TASK.collate(examples)
    with torch.no_grad():
        return model(batch.inputs, Context(batch.layout), readout=lambda hidden, head: read(hidden, head, batch))


def alone(model=MODEL):
    """Log-probabilities [N, 3] of the examples, each run without padding."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([e.tokens]))[0, 0].log_softmax(dim=-1) for e in EXAMPLES])


@pytest.mark.parametrize(("found", "labels"), [
    (["b", "a", "b"], ["a", "b"]), ([10, 9, 10], [9, 10]), (["b", 2, "a", 1], [1, 2, "a", "b"]),
    (["a", "", "a"], ["", "a"])])
def test_labels_are_learnt_in_order(found, labels):
    assert Classification().fit(LabelledRecord(input="x", label=label) for label in found) == {"labels": labels}


def test_labels_that_are_given_are_not_learnt():
    assert TASK.fit([LabelledRecord(input="x", label="other")]) == {}


def test_labels_survive_being_saved_with_their_types():
    spec = resolve("task", {"name": "classification", "labels": [1, 2, "a"]})
    assert json.loads(json.dumps(spec.options)) == {"labels": [1, 2, "a"], "features": []}


@pytest.mark.parametrize("label", [0.5, None, True, ["a"]])
def test_a_label_is_a_whole_number_or_a_string(label):
    with pytest.raises(ValueError, match="label"):
        LabelledRecord(input="x", label=label)


def test_one_label_only_is_refused():
    with pytest.raises(ValueError, match="every record has the label 3"):
        Classification().fit([LabelledRecord(input="x", label=3)] * 2)
    with pytest.raises(ValueError, match="labels: 3 is the only one, so that every prediction would be it with probability 1"):
        Classification(labels=(3,))


def test_a_label_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match="labels: 'a' occurs twice"):
        Classification(labels=("b", "a", "a"))


def test_labels_that_are_written_alike_are_refused():
    """A prediction is keyed by labels as JSON writes keys."""
    with pytest.raises(ValueError, match="labels: 1 and '1' are written alike: one is a number, the other a text; write all"):
        Classification(labels=("1", 1))


def test_an_unknown_label_is_told_with_what_is_near_it():
    with pytest.raises(ValueError, match="label 'hihg' is not one of the 3 in the training data; did you mean 'high'"):
        TASK.encode(LabelledRecord(input="x", label="hihg"), TOKENIZER)


def test_a_number_is_not_the_string_that_looks_like_it():
    with pytest.raises(ValueError, match="label '1' is not one of the 2"):
        Classification(labels=(1, 2)).encode(LabelledRecord(input="x", label="1"), TOKENIZER)


@pytest.mark.parametrize(("known", "label", "told"), [
    (1, "1", "1 is, and one is a number, the other a text"), ("1", 1, "'1' is, and one is a number, the other a text"),
    (1, "1.0", "1 is, and one is a number, the other a text"), ("a", " a", "'a' is, and they differ in spaces alone"),
    ("Spam", "spam", "'Spam' is, and they differ in capital letters alone"),
    ("\u00e9", "e\u0301", "'\u00e9' is, and they look alike, and differ in their Unicode form, 'e.u0301' and '.xe9'"),
])
def test_an_unknown_label_that_readers_take_for_a_known_one_is_told_with_what_differs(known, label, told):
    with pytest.raises(ValueError, match=f"is not one of the 2 in the training data; {told}.*; write them alike in all files"):
        Classification(labels=(known, "other")).encode(LabelledRecord(input="x", label=label), TOKENIZER)


def test_the_target_is_the_place_of_the_label():
    assert [e.target for e in EXAMPLES] == [LABELS.index(r.label) for r in RECORDS]


def test_the_head_is_as_wide_as_there_are_labels():
    assert TASK.n_outputs(vocab_size=261) == 3


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rope"])
def test_padding_is_invisible(pool, position):
    one = model(head={"name": "classification", "pool": pool}, position=position)
    read = lambda hidden, head, batch: head.summary(hidden, batch.layout)  # noqa: E731
    together, apart = run(EXAMPLES, read, one), torch.cat([run([e], read, one) for e in EXAMPLES])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-10)


def test_the_loss_is_the_cross_entropy_of_the_labels():
    term = run(EXAMPLES, TASK.loss)
    expected = -sum(alone()[i, e.target] for i, e in enumerate(EXAMPLES))
    torch.testing.assert_close(term.sum, expected, rtol=0, atol=1e-10)
    assert int(term.weight) == len(EXAMPLES)


def test_losses_of_parts_of_a_batch_add_up():
    whole, parts = run(EXAMPLES, TASK.loss), [run(EXAMPLES[i:j], TASK.loss) for i, j in [(0, 1), (1, 6), (6, 8)]]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=0, atol=1e-10)
    assert sum(int(part.weight) for part in parts) == int(whole.weight)


def test_metrics_are_those_of_the_whole_pass():
    metrics = TASK.metrics(TOKENIZER)
    for part in (EXAMPLES[:3], EXAMPLES[3:]):
        run(part, lambda hidden, head, batch: TASK.update(metrics, hidden, head, batch, TASK.loss(hidden, head, batch)))
    pairs = list(zip(alone().argmax(dim=1).tolist(), [e.target for e in EXAMPLES], strict=True))
    assert float(metrics["accuracy"].compute()) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert float(metrics["f1"].compute()) == pytest.approx(macro_f1(pairs))


def macro_f1(pairs):
    """The mean, over classes that occur, of 2 hits / (times said + times right)."""
    scores = []
    for label in sorted({label for pair in pairs for label in pair}):
        hits = sum(a == b == label for a, b in pairs)
        scores.append(2 * hits / (sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs)))
    return sum(scores) / len(scores)


def test_macro_f1_counts_rare_classes_as_much_as_frequent_ones():
    metric = TASK.metrics(TOKENIZER)["f1"]
    said, right = [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 2]
    metric.update(torch.tensor(said), torch.tensor(right))
    assert float(metric.compute()) == pytest.approx(macro_f1(list(zip(said, right, strict=True))))


def test_a_prediction_is_a_label_with_the_probability_of_each():
    predictions = run(EXAMPLES, TASK.predict)
    for row, log_p in zip(predictions, alone(), strict=True):
        assert row["label"] == LABELS[int(log_p.argmax())]
        assert row["probabilities"] == pytest.approx(dict(zip(LABELS, map(math.exp, log_p), strict=True)), abs=1e-6)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("labels", [("a", "b", "c"), (0, 1, 2), (7, "a", "b")])
def test_a_prediction_is_json(labels):
    task = Classification(labels=labels)
    [row] = run(EXAMPLES[:1], task.predict)
    assert json.loads(json.dumps(row)) == row
    assert row["label"] in labels and list(row["probabilities"]) == list(map(str, labels))


def test_the_baseline_says_what_is_most_frequent_in_training():
    def split(labels):
        records = [LabelledRecord(input="x", label=label) for label in labels]
        return Split(records, [TASK.encode(record, TOKENIZER) for record in records])

    train, held_out = split(["low", "low", "high"]), split(["high", "high", "low", "middle"])
    assert TASK.baselines(train, held_out, TOKENIZER) == {"always 'low'": {"accuracy": 0.25}}


@pytest.mark.usefixtures("few_sources")
def test_the_embedded_records_have_labels_to_tell_apart():
    records = [record for _, record in Classification().stdlib()]
    labels = Classification().fit(records)["labels"]
    assert len(labels) >= 2 and "asyncio" in labels
