"""docs/tasks.md: its records are records, and predictions have the form that it shows."""

import json
import re
from pathlib import Path

import pytest
from task_models import model_for

from miniformer.data.prepare import prepare_data
from miniformer.inference.load import Trained
from miniformer.inference.predict import predict
from miniformer.kernel import current_registry, resolve

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
SECTIONS = {title.strip("`"): text for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M)}
NAMES = [entry.name for entry in current_registry().entries("task") if entry.distribution == "miniformer"]


def test_each_task_has_one_section():
    titles = re.findall(r"^## `([^`]+)`", PAGE, flags=re.M)
    assert sorted(titles) == sorted(NAMES)


def blocks(section, language):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], flags=re.S | re.M)


def trained(task, block, folder):
    """A model with random weights for a task that has learnt from the lines of a block."""
    (folder / "block.jsonl").write_text(block, encoding="utf-8")
    data = prepare_data(resolve("task", task), str(folder / "block.jsonl"), str(folder / "block.jsonl"), vocab_size=300)
    return Trained(model_for(data.task, data.tokenizer.vocab_size or 1), data.tokenizer, data.task)


def form(value):
    """What a prediction is made of: names and types, numbers of any kind being alike."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return float if isinstance(value, (int, float)) else type(value)


@pytest.mark.parametrize("name", NAMES)
def test_records_and_predictions_are_as_shown(name, tmp_path):
    [block], [shown] = blocks(name, "jsonl"), blocks(name, "json")
    one = trained(name, block, tmp_path)
    records = [json.loads(line) for line in block.splitlines()]
    assert len(records) == 2
    [found, _] = predict(one, records)
    shown = json.loads(shown)
    assert found.keys() == shown.keys()
    for key, value in found.items():
        assert form(value) in (form(shown[key]), []), key  # an untrained model may say no label


@pytest.mark.parametrize(("place", "name"), [(0, "classification"), (1, "regression")])
def test_series_are_as_shown(place, name, tmp_path):
    block = blocks("Texts and series", "jsonl")[place]
    one = trained(name, block, tmp_path)
    assert one.task.input_dim == (2, 1)[place]
    assert len(list(predict(one, [json.loads(line) for line in block.splitlines()]))) == 2


def test_metrics_and_baselines_are_named(tmp_path):
    for name in NAMES:
        one = trained(name, blocks(name, "jsonl")[0], tmp_path)
        for metric in one.task.metrics(one.tokenizer):
            assert f"`{metric}`" in SECTIONS[name], f"{name}: {metric}"
