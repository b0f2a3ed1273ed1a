"""What the outputs of a classifier of BERT mean: one label of several, any of several labels, or a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import sequence, tokens, word_piece
from miniformer_hf import export_folder, import_folder
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from miniformer.checkpoint.store import read_model, write_model
from miniformer.inference.load import load
from miniformer.inference.predict import predict
from miniformer.kernel import UserError

TEXTS = [{"input": "the quick fox"}, {"input": "a lazy dog"}]
ONE = {0: "score"}


def there(folder: Path, maker: Any, **fields: Any) -> tuple[Any, Any]:
    """A checkpoint with its tokenizer in `folder`."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_piece(), pad_token="[PAD]", unk_token="[UNK]")
    model = maker(vocab_size=len(tokenizer), **fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def scores_of(model: Any, tokenizer: Any) -> list[Any]:
    """What transformers computes for each text."""
    with torch.no_grad():
        return [model(**tokenizer(text["input"], return_tensors="pt")).logits[0] for text in TEXTS]


@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_single_output_is_a_number_as_in_transformers(tmp_path: Path, problem: str | None) -> None:
    theirs, tokenizer = there(tmp_path / "there", sequence, id2label=ONE, problem_type=problem)
    import_folder(tmp_path / "there", tmp_path / "here")
    found = [row["value"] for row in predict(load(tmp_path / "here"), TEXTS)]
    assert found == pytest.approx([float(score) for score in scores_of(theirs, tokenizer)], abs=1e-5)


@pytest.mark.parametrize("labels", [ONE, {0: "rude", 1: "long"}])
def test_labels_that_do_not_exclude_each_other_have_a_chance_each(tmp_path: Path, labels: dict[int, str]) -> None:
    theirs, tokenizer = there(tmp_path / "there", sequence, id2label=labels, problem_type="multi_label_classification")
    import_folder(tmp_path / "there", tmp_path / "here")
    for row, scores in zip(predict(load(tmp_path / "here"), TEXTS), scores_of(theirs, tokenizer), strict=True):
        chances = dict(zip(labels.values(), scores.sigmoid().tolist(), strict=True))
        assert row["probabilities"] == pytest.approx(chances, abs=1e-5)
        assert row["labels"] == [label for label, chance in chances.items() if chance > 0.5]


@pytest.mark.parametrize(("maker", "fields", "message"), [
    (sequence, {"problem_type": "single_label_classification"},
     "problem_type is 'single_label_classification'; supported: None, 'multi_label_classification', 'regression'"),
    (tokens, {}, "labels: 'score' is the only one, so that every prediction would be it with probability 1"),
])
def test_a_choice_among_one_label_is_refused(tmp_path: Path, maker: Any, fields: dict[str, Any], message: str) -> None:
    there(tmp_path / "there", maker, id2label=ONE)
    path = tmp_path / "there" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))  # newer releases of transformers refuse it too
    with pytest.raises(UserError, match=f"config.json: .*{message}"):
        import_folder(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_an_export_says_the_number_in_its_own_unit(tmp_path: Path) -> None:
    there(tmp_path / "there", sequence, id2label=ONE)
    import_folder(tmp_path / "there", tmp_path / "here")
    saved, weights = read_model(tmp_path / "here"), load(tmp_path / "here").model.state_dict()
    learnt = {**saved.config, "task": {"name": "regression", "mean": 100.0, "std": 4.0}}
    write_model(tmp_path / "trained", weights, learnt, (saved.folder / "tokenizer.json").read_text(encoding="utf-8"))
    export_folder(tmp_path / "trained", tmp_path / "back")
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path / "back")
    values = [row["value"] for row in predict(load(tmp_path / "trained"), TEXTS)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "back" / "tokenizer.json"))
    assert [float(score) for score in scores_of(back.eval(), tokenizer)] == pytest.approx(values, abs=1e-3)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_an_export_says_which_problem_it_solves(tmp_path: Path, problem: str) -> None:
    there(tmp_path / "there", sequence, problem_type=problem)
    import_folder(tmp_path / "there", tmp_path / "here")
    export_folder(tmp_path / "here", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["problem_type"] == problem
