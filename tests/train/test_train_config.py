"""The spec of a run: what is accepted, under which names, and how a mistake is told."""

import json
import math
import typing
from pathlib import Path

import depth
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import SpecError, UnknownComponent
from miniformer.train.train_config import DEFAULT_EPOCHS, STDLIB_STEPS, TrainConfig


def test_every_field_has_a_default():
    config = TrainConfig()
    assert (config.train_path, config.task.name, config.optimizer.name, config.scheduler.name) == (
        "stdlib", "language-modeling", "adamw", "cosine")


def test_every_field_is_described():
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


def test_the_documented_call():
    config = TrainConfig(
        train_path="data/train.jsonl", val_path="data/val.jsonl", test_path="data/test.jsonl", task="language_modeling",
        model="transformer", model_config={}, batch_size=32, max_epochs=10, lr=3e-4, weight_decay=0.01,
        scheduler="cosine", warmup_steps=1000, gradient_clip_val=1.0, accumulate_grad_batches=1, work_dir="./runs",
        experiment_name="experiment1", logger="tensorboard", gpus=1, precision=32, seed=42, num_workers=4,
        early_stopping_patience=3, checkpoint_metric="val_loss")
    assert (config.task.name, config.scheduler.name, config.precision) == ("language-modeling", "cosine", 32)


def test_the_model_is_given_as_model_config():
    config = TrainConfig(model_config={"d_model": 64})
    assert config.architecture == {"d_model": 64}
    assert config.to_data()["model_config"] == {"d_model": 64}


def test_the_model_may_be_given_under_its_attributes_name():
    assert TrainConfig(architecture={"d_model": 64}) == TrainConfig(model_config={"d_model": 64})


configs = st.builds(
    TrainConfig,
    task=st.sampled_from(["classification", "language_modeling", {"name": "classification", "labels": ["a", 1]}]),
    architecture=st.sampled_from([{}, {"d_model": 64, "ffn": {"name": "gelu", "bias": True}}]),
    scheduler=st.sampled_from(["none", {"name": "cosine", "floor": 0.2}]), batch_size=st.integers(1, 512),
    max_steps=st.none() | st.integers(1, 10**6), lr=st.floats(1e-8, 1),
    precision=st.sampled_from(["auto", "bf16", 16, 32, 64]),
    val_path=st.none() | st.text(), gradient_clip_val=st.none() | st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1))


@settings(max_examples=depth.examples(30), deadline=None)
@given(configs)
def test_json_and_yaml_bring_a_config_back(config):
    assert TrainConfig(**json.loads(json.dumps(config.to_data()))) == config
    assert TrainConfig(**yaml.safe_load(yaml.safe_dump(config.to_data(), allow_unicode=True))) == config


def test_a_yaml_file_says_what_a_call_says():
    text = "{task: {name: language_modeling}, model_config: {d_model: 64}, lr: 5e-4, precision: '16', max_steps: 10}"
    assert TrainConfig(**yaml.safe_load(text)) == TrainConfig(
        task="language-modeling", model_config={"d_model": 64}, lr=5e-4, precision=16, max_steps=10)


def test_some_fields_can_be_changed():
    config = TrainConfig(lr=0.1).with_fields(batch_size=3, model_config={"d_model": 8})
    assert (config.lr, config.batch_size, config.architecture) == (0.1, 3, {"d_model": 8})


def test_changed_fields_are_checked():
    with pytest.raises(SpecError, match="batch_size"):
        TrainConfig().with_fields(batch_size=0)


def test_a_config_is_shown_by_what_differs_from_its_defaults():
    assert repr(TrainConfig(lr=0.5, model_config={"d_model": 8})) == "TrainConfig(model_config={'d_model': 8}, lr=0.5)"


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        TrainConfig().lr = 1.0


@pytest.mark.parametrize(("field", "name"), [("task", "language_modeling"), ("task", "Language-Modeling"),
                                             ("scheduler", "OneCycle"), ("optimizer", "AdamW")])
@pytest.mark.parametrize("wrap", [lambda name: name, lambda name: {"name": name}], ids=["name", "mapping"])
def test_names_are_lower_case_with_dashes_however_they_are_spelt(field, name, wrap):
    assert getattr(TrainConfig(**{field: wrap(name)}), field).name == name.lower().replace("_", "-")


@pytest.mark.parametrize(("field", "near"), [("batchsize", "batch_size"), ("model_confg", "model_config"),
                                             ("max_epoch", "max_epochs"),
                                             ("hidden_size", "model_config.d_model"), ("n_layers", "model_config.n_layers"),
                                             ("learning_rate", "lr")])
def test_an_unknown_field_is_told_with_what_is_near_it(field, near):
    with pytest.raises(SpecError, match=f"there is no '{field}' here; did you mean.*'{near}'"):
        TrainConfig(**{field: 1})


@pytest.mark.parametrize(("kind", "name", "near"), [
    ("task", "clasification", "classification"), ("optimizer", "adam", "adamw"),
    ("scheduler", {"name": "cosin"}, "cosine")])
def test_an_unknown_component_is_told_with_what_is_near_it(kind, name, near):
    with pytest.raises(UnknownComponent, match=rf"there is no {kind} named .*\n  did you mean: .*{near}"):
        TrainConfig(**{kind: name})


def test_a_component_of_another_kind_is_told():
    with pytest.raises(UnknownComponent, match="there is a scheduler of that name"):
        TrainConfig(optimizer="cosine")


def test_an_unknown_extension_is_told():
    with pytest.raises(UnknownComponent, match="there is no extension named 'lorra'"):
        TrainConfig(extensions={"lorra": {}})


@pytest.mark.parametrize(("field", "value"), [
    ("batch_size", 0), ("batch_size", 1.5), ("lr", 0), ("lr", -1), ("lr", float("inf")), ("lr", float("nan")),
    ("lr", "fast"), ("val_fraction", 0), ("val_fraction", 1), ("weight_decay", -0.1), ("weight_decay", float("inf")),
    ("warmup_steps", -1), ("gradient_clip_val", 0), ("accumulate_grad_batches", 0), ("gpus", -1), ("num_workers", -1),
    ("seed", -1), ("seed", 2**32), ("max_epochs", 0), ("max_steps", -5), ("precision", 8), ("precision", "fp8"),
    ("model", "mamba"), ("logger", "printf"), ("tokenizer_vocab_size", 10), ("model_config", [1]), ("task", 5),
    ("optimizer", None), ("extensions", 5), ("extensions", ["lora"]), ("extensions", {1: {}}),
    ("early_stopping_patience", 0)])
def test_a_value_out_of_range_is_told_with_its_field(field, value):
    with pytest.raises(SpecError, match=rf"^{field}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(("given", "stored"), [
    ("auto", "auto"), ("bf16", "bf16"), ("16", 16), ("32", 32), ("64", 64), (16, 16)])
def test_precision_is_a_word_or_a_number(given, stored):
    assert TrainConfig(precision=given).precision == stored


@pytest.mark.parametrize(("fields", "duration"), [
    ({}, (-1, STDLIB_STEPS)), ({"train_path": "x.jsonl"}, (DEFAULT_EPOCHS, -1)), ({"max_epochs": 3}, (3, -1)),
    ({"max_steps": 3}, (-1, 3)), ({"max_epochs": 2, "max_steps": 3}, (2, 3)),
    ({"train_path": "x.jsonl", "max_steps": 3}, (-1, 3))])
def test_how_long_a_run_is(fields, duration):
    assert TrainConfig(**fields).duration == duration


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../evil", "/evil", "a/b", "a\\b", "a\0b", "a\nb", ".cache"])
def test_an_experiment_is_named_as_a_folder_of_its_own(name):
    with pytest.raises(SpecError, match=r"experiment_name: expected the plain name of a folder in work_dir.*; found "):
        TrainConfig(experiment_name=name)


@pytest.mark.parametrize(("name", "kept"), [("mine", "mine"), ("run 2.b", "run 2.b"), ("..a", "..a"),
                                            ("none", None), (None, None)])
def test_a_plain_experiment_name_is_kept_and_none_is_no_name(name, kept):
    assert TrainConfig(experiment_name=name).experiment_name == kept


@pytest.mark.parametrize("field", ["train_path", "val_path", "test_path", "tokenizer", "work_dir"])
def test_a_path_may_be_an_object(field):
    config = TrainConfig(**{field: Path("some") / "where"})
    assert config.to_data()[field] == str(Path("some") / "where")
    assert TrainConfig.model_validate(config.to_data()) == config


@pytest.mark.parametrize("code", ["TrainConfig()", "TrainConfig(task='classification')", "raises(task='clasification')",
                                  "raises(batchsize=1)"])
def test_a_config_and_its_mistakes_need_no_torch(fresh_python, code):
    assert fresh_python(f"""
import sys
from miniformer.kernel import UserError
from miniformer.train.train_config import TrainConfig
def raises(**fields):
    try:
        TrainConfig(**fields)
    except UserError as error:
        assert "did you mean" in str(error)
    else:
        raise AssertionError
{code}
print("torch" in sys.modules)""") == "False"


def numeric(config):
    """The fields of a config whose values are numbers, and nothing but numbers."""
    return [name for name, field in config.model_fields.items()
            if {int, float} & {field.annotation, *typing.get_args(field.annotation)}]


@pytest.mark.parametrize(("config", "field"), [(config, name) for config in (TrainConfig, TransformerConfig)
                                               for name in numeric(config)])
@settings(max_examples=depth.examples(30), deadline=None)
@given(value=st.booleans() | st.integers(max_value=-1) | st.integers(min_value=2**1024) | st.floats(max_value=-1e-9)
       | st.sampled_from([math.nan, math.inf, -math.inf, "nan", "inf", "1e400", "", "many", [], {}, b"\xff"]))
@example(value=True)
@example(value=10**400)
def test_what_is_no_number_in_range_is_told_with_its_field(config, field, value):
    with pytest.raises(SpecError, match=f"^{field}: .*found "):
        config(**{field: value})


@pytest.mark.parametrize("name", ["d_model", "attention"])
def test_a_field_of_the_model_is_told_where_it_belongs(name):
    with pytest.raises(SpecError, match=f"^{name}: there is no '{name}' here; did you mean 'model_config.{name}'"):
        TrainConfig(**{name: 1})


def test_a_name_like_one_of_the_models_fields_is_told_with_it():
    with pytest.raises(SpecError, match=r"n_layr: there is no 'n_layr' here; did you mean 'model_config\.n_layers'"):
        TrainConfig(n_layr=3)
