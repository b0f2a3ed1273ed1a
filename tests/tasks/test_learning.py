"""Each task learns: through `miniformer train`, from a file and from the embedded data, better than what is trivial.

CI trains each task once, on a file; the thorough run trains on the embedded data too, which take longer to read and to learn.
"""

import json
import random

import pytest
from depth import rarely, thorough

MODEL = ("--d-model", "48", "--n-heads", "4", "--n-layers", "2", "--max-seq-len", "64", "--batch-size", "32",
         "--precision", "32", "--tokenizer-vocab-size", "600", "--experiment-name", "run")
BETTER = {"loss": -1, "mse": -1}
GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "cat": "Katze", "dog": "Hund", "runs": "rennt", "sleeps": "schläft"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def reached(cli, tmp_path, *args):
    """What a run's best model and the trivial predictors reach on held-out records."""
    cli("train", *MODEL, *args)
    results = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["results"]
    return results["best"], results["baselines"]


def beats(found, metric, margin):
    """The model is better than each trivial predictor by a margin in the metric."""
    best, baselines = found
    for name, values in baselines.items():
        if metric in values:
            assert BETTER.get(metric, 1) * (best[f"val_{metric}"] - values[metric]) > margin, f"{name}: {best} {baselines}"
    assert any(metric in values for values in baselines.values())


@thorough
@pytest.mark.slow
@pytest.mark.parametrize(("task", "metrics", "flags"), [
    ("prefix-lm", {"loss": 0.4}, ("--max-steps", "100", "--lr", "5e-3", "--val-fraction", "0.02")),
    ("seq2seq", {"loss": 1.0, "accuracy": 0.15}, ("--max-steps", "300", "--lr", "4e-3", "--tokenizer-vocab-size", "400")),
])
def test_the_embedded_data_are_learnt_by_an_encoder_and_a_decoder(cli, tmp_path, task, metrics, flags):
    found = reached(cli, tmp_path, *({"prefix-lm": ("--model", "seq2seq")}.get(task) or ("--task", task)), *flags)
    for metric, margin in metrics.items():
        beats(found, metric, margin)


@thorough
@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric", "margin", "steps"), [
    ("masked-lm", "loss", 0.1, 150),
    ("classification", "accuracy", 0.2, 150),
    ("multilabel", "f1_micro", 0.4, 100),
    ("token-classification", "accuracy", 0.015, 100),  # over each word's usual kind; 0.5 over the commonest
    ("regression", "mse", 0.5, 100),
    ("embedding", "mrr", 0.1, 160),
])
def test_the_embedded_data_are_learnt(cli, tmp_path, task, metric, margin, steps):
    beats(reached(cli, tmp_path, "--task", task, "--max-steps", str(steps)), metric, margin)


def words(rng, count):
    return " ".join(rng.choice(list(GERMAN)) for _ in range(count))


def masked(rng):
    animal, sound = rng.choice([("cat", "miaow"), ("dog", "woof"), ("cow", "moo"), ("owl", "hoot")])
    return {"text": f"the {animal} says {sound} and eats grass"}


def translated(rng):
    text = words(rng, rng.randint(1, 5))
    return {"source": text, "target": " ".join(GERMAN[word] for word in text.split())}


def multilabel(rng):
    text = words(rng, 6)
    return {"input": text, "labels": [word for word in ("red", "cat", "runs") if word in text.split()]}


def tagged(rng):
    tokens = words(rng, 6).split()
    return {"tokens": tokens, "labels": ["colour" if t in ("red", "green", "blue") else "after " + (
        "colour" if i and tokens[i - 1] in ("red", "green", "blue") else "none") for i, t in enumerate(tokens)]}


def counted(rng):
    text = words(rng, rng.randint(1, 9))
    return {"input": text, "label": 50.0 + 10 * len(text.split())}


def pair(rng):
    number = rng.randint(1, 200)
    return {"anchor": f"number {number} in figures", "positive": " ".join(DIGITS[int(digit)] for digit in str(number))}


def rising(rng):
    slope = rng.uniform(-3, 3)
    return {"input": [[slope * t + rng.random(), rng.random()] for t in range(rng.randint(5, 20))],
            "label": "up" if slope > 0 else "down"}


def sloping(rng):
    slope = rng.uniform(-3, 3)
    return {"input": [slope * t + rng.random() for t in range(rng.randint(5, 20))], "value": 1e6 + 1000 * slope}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "record", "metric", "margin", "steps"), [
    ("masked-lm", masked, "loss", 0.7, 150),
    ("prefix-lm", masked, "loss", 1.0, 100),
    ("seq2seq", translated, "exact_match", 0.5, 200),
    ("multilabel", multilabel, "f1_micro", 0.2, 100),
    ("token-classification", tagged, "accuracy", 0.1, 100),
    ("regression", counted, "mse", 300, 100),
    ("embedding", pair, "mrr", 0.3, 150),
    ("classification", rising, "accuracy", 0.3, 100),
    rarely(("regression", sloping, "mse", 2e6, 100)),
], ids=lambda value: getattr(value, "__name__", None))
def test_a_file_is_learnt(cli, tmp_path, task, record, metric, margin, steps):
    rng = random.Random(0)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record(rng)) + "\n" for _ in range(600)))
    found = reached(cli, tmp_path, "--task", task, "--train-path", "data.jsonl", "--max-steps", str(steps), "--val-fraction",
                    "0.1")
    beats(found, metric, margin)
