"""Runs on series: no tokenizer anywhere, from the file to predictions, and faults told with their line."""

import json

import pytest

from miniformer.inference.load import load
from miniformer.inference.predict import predict
from miniformer.kernel import DataError, SpecError
from miniformer.model.transformer import Transformer
from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train

RECORDS = [{"input": [[n % 5, 100 + n], [n % 3, n]], "label": "ab"[n % 2]} for n in range(40)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def run(folder, records, **fields):
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 8, **fields.pop("model_config", {})}
    return train(TrainConfig(**{"train_path": write(folder / "series.jsonl", records), "work_dir": str(folder / "runs"),
                                "task": "classification", "max_steps": 4, "precision": 32, "model_config": model, **fields}))


def test_a_run_on_series_is_loaded_and_used_without_a_tokenizer(tmp_path):
    result = run(tmp_path, RECORDS)
    assert {p.name for p in (result.folder / "checkpoints" / "best_model").iterdir()} == {
        "config.json", "manifest.json", "model.safetensors"}
    assert Transformer.from_pretrained(result.folder).config.input_dim == 2
    trained = load(result.folder)
    found = [row["label"] for row in predict(trained, RECORDS)]
    held_out = [found[RECORDS.index(json.loads(r.model_dump_json()))] == r.label for r in result.data.val.records]
    assert sum(held_out) / len(held_out) == pytest.approx(result.metrics["val_accuracy"])


@pytest.mark.parametrize("precision", [32, 64, "bf16"])
def test_series_are_read_in_any_precision(tmp_path, precision):
    assert run(tmp_path, RECORDS, precision=precision).metrics["val_loss"] > 0


def test_longer_series_are_cut(tmp_path):
    result = run(tmp_path, [{**record, "input": record["input"] * 10} for record in RECORDS])
    assert {len(example.tokens) for example in result.data.train.examples} == {8}


def test_a_record_of_another_width_is_told_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"series\.jsonl:41: field 'input': element 2 is 1 number; expected 2 numbers for each"):
        run(tmp_path, [*RECORDS, {"input": [[1, 2], [3]], "label": "a"}])
    with pytest.raises(DataError, match=r"series\.jsonl:41: field 'input': a text; expected 2 numbers for each"):
        run(tmp_path, [*RECORDS, {"input": "text", "label": "a"}])


def test_a_tokenizer_for_numbers_is_refused(tmp_path):
    from miniformer.data.tokenizer import Tokenizer

    (tmp_path / "tokenizer.json").write_text(Tokenizer.train(["a"], 261).to_json())
    with pytest.raises(DataError, match="the inputs are numbers, which need no tokenizer"):
        run(tmp_path, RECORDS, tokenizer=str(tmp_path / "tokenizer.json"))


def test_the_width_may_be_said_and_has_to_be_right(tmp_path):
    run(tmp_path, RECORDS, model_config={"input_dim": 2})
    with pytest.raises(SpecError, match=r"model_config\.input_dim is 3, and the inputs are series of 2 numbers a step"):
        run(tmp_path, RECORDS, model_config={"input_dim": 3})
    texts = [{"input": f"text {n}", "label": "ab"[n % 2]} for n in range(9)]
    with pytest.raises(SpecError, match=r"model_config\.input_dim is 3, and the inputs are texts"):
        run(tmp_path, texts, model_config={"input_dim": 3})
