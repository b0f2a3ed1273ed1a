"""Which task, assembly and model a config means."""

import pytest

from miniformer.kernel import SpecError, Task, build
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.specs import check_model, model_class, task_spec
from miniformer.train.train_config import TrainConfig


def meant(**fields):
    spec = task_spec(TrainConfig(**fields))
    return spec.name, model_class(build(Task, spec))


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, ("language-modeling", Transformer)),
    ({"model": "transformer"}, ("language-modeling", Transformer)),
    ({"model": "seq2seq"}, ("prefix-lm", Seq2SeqTransformer)),
    ({"task": "language_modeling", "model": "seq2seq"}, ("prefix-lm", Seq2SeqTransformer)),
    ({"task": "seq2seq"}, ("seq2seq", Seq2SeqTransformer)),
    ({"task": "seq2seq", "model": "seq2seq"}, ("seq2seq", Seq2SeqTransformer)),
    ({"task": "prefix-lm"}, ("prefix-lm", Seq2SeqTransformer)),
    ({"task": "classification"}, ("classification", Transformer)),
])
def test_the_task_says_which_assembly_and_the_assembly_which_form_of_the_task(fields, expected):
    assert meant(**fields) == expected


def test_options_of_a_task_go_to_the_one_that_takes_its_place():
    with pytest.raises(SpecError, match="part"):
        task_spec(TrainConfig(task={"name": "language-modeling", "part": 0.25}, model="transformer"))
    assert task_spec(TrainConfig(task={"name": "prefix-lm", "part": 0.25}, model="seq2seq")).options == {"part": 0.25}


def test_a_task_without_source_is_refused_with_those_that_have_one():
    with pytest.raises(SpecError, match=r"task 'classification' has no source for its encoder; tasks that have one: "
                                        r".*language-modeling, prefix-lm, seq2seq"):
        meant(task="classification", model="seq2seq")


def test_a_task_with_a_source_is_refused_for_a_model_without_encoder():
    with pytest.raises(SpecError, match=r"task 'seq2seq' has a source for an encoder .* it trains model 'seq2seq'"):
        meant(task="seq2seq", model="transformer")


def test_a_module_is_of_the_assembly_that_its_config_means():
    config = TrainConfig(model="seq2seq", model_config={"vocab_size": 30, "d_model": 16, "n_heads": 2, "n_layers": 1})
    assert type(MiniFormerLitModule(config).model) is Seq2SeqTransformer


def test_a_task_that_compares_the_records_of_a_batch_needs_more_than_one():
    with pytest.raises(SpecError, match="batch_size is 1, and task 'embedding' compares the records of a batch"):
        check_model(TrainConfig(task="embedding", batch_size=1))
    check_model(TrainConfig(task="classification", batch_size=1))
