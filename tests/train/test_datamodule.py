"""Datasets and loaders: the documented calls, and what they give."""

import json

import depth
import pytest
import pytorch_lightning as pl
import torch

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError, SpecError
from miniformer.kernel.task import Batch, Example
from miniformer.train.datamodule import JSONLinesDataset, MiniFormerDataModule
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.train_config import TrainConfig

TOKENIZER = Tokenizer.train(["the number of a number", "a hammer, an apple"], 280)


def module(path, **fields):
    config = TrainConfig(**{"train_path": str(path), "batch_size": 4, "model_config": {"max_seq_len": 16}, **fields})
    return MiniFormerDataModule(config=config, tokenizer=TOKENIZER)


def tokens_of(loader):
    return [batch.inputs.tolist() for batch in loader]


def in_epoch(loader, epoch):
    loader.batch_sampler.set_epoch(epoch)
    return tokens_of(loader)


def test_the_documented_dataset(texts):
    dataset = JSONLinesDataset(path=str(texts), tokenizer=TOKENIZER, task="language_modeling")
    assert len(dataset) == 42
    assert isinstance(dataset[0], Example)
    assert TOKENIZER.decode(dataset[1].tokens) == "the 1 of 1 is a number, and 1 is 1"


def test_a_dataset_takes_a_path_and_trains_a_tokenizer(texts):
    dataset = JSONLinesDataset(texts)
    assert dataset.tokenizer.decode(dataset[0].tokens) == "the 0 of 0 is a number, and 0 is 0"


def test_a_dataset_takes_a_tokenizer_of_the_library(texts):
    raw, ours = (JSONLinesDataset(str(texts), tokenizer) for tokenizer in (TOKENIZER.backend, TOKENIZER))
    assert raw[0].tokens == ours[0].tokens


def test_a_dataset_of_labelled_texts_learns_the_labels(labelled):
    dataset = JSONLinesDataset(str(labelled), TOKENIZER, task="classification")
    assert dataset.task.labels == ("fruit", "tool")
    assert {example.target for example in dataset} == {0, 1}


@pytest.fixture
def halves(tmp_path):
    """Two files of labelled texts, the second with fewer labels."""
    paths = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for path, labels in zip(paths, (("ant", "bee", "cow"), ("bee", "cow")), strict=True):
        path.write_text("".join(json.dumps({"input": f"a {label}", "label": label}) + "\n" for label in labels))
    return paths


@pytest.mark.parametrize("way", [lambda first: first, lambda first: first.task_spec])
def test_a_dataset_that_is_given_what_another_learnt_agrees_with_it(halves, way):
    first = JSONLinesDataset(halves[0], TOKENIZER, "classification")
    second = JSONLinesDataset(halves[1], TOKENIZER, way(first))
    assert second.task.labels == first.task.labels == ("ant", "bee", "cow")
    assert [example.target for example in second] == [1, 2]
    assert [example.tokens for example in second] == [example.tokens for example in first][1:]
    assert JSONLinesDataset(halves[1], TOKENIZER, second).task.labels == first.task.labels


def test_a_dataset_has_the_tokenizer_of_the_one_that_it_is_to_agree_with(halves):
    first = JSONLinesDataset(halves[0], task="classification")
    assert JSONLinesDataset(halves[1], task=first).tokenizer.to_json() == first.tokenizer.to_json()


def test_a_label_that_the_other_dataset_has_not_is_told(halves):
    with pytest.raises(DataError, match=r"first\.jsonl:1: .*'ant'"):
        JSONLinesDataset(halves[0], TOKENIZER, JSONLinesDataset(halves[1], TOKENIZER, "classification"))


def test_a_dataset_ends(texts):
    assert len(list(JSONLinesDataset(str(texts), TOKENIZER))) == 42


def test_a_dataset_tells_faults_with_file_and_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: field 'text' is missing"):
        JSONLinesDataset(str(path), TOKENIZER)


def test_the_documented_data_module(texts):
    data = module(texts)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    batches = [next(iter(loader)) for loader in loaders]
    assert all(isinstance(batch, Batch) and batch.inputs.dtype == torch.long for batch in batches)


def test_a_data_module_reads_nothing_before_it_is_asked(tmp_path):
    data = module(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no such file"):
        data.train_dataloader()


def test_files_are_read_once(texts):
    data = module(texts)
    before = data.data
    texts.unlink()
    list(data.train_dataloader())
    assert data.data is before


def test_what_a_user_should_know_of_the_data_is_logged_once_by_the_first_process(labelled, caplog, monkeypatch):
    fields = {"task": "classification", "model_config": {"max_seq_len": 3}}
    data = module(labelled, **fields)
    assert caplog.messages == [], "nothing is read before it is asked for"
    assert list(data.data.notes) == caplog.messages == [
        "{}: 120 of 120 texts were cut to 3 tokens, the longest from {}; a model with a larger max_seq_len reads more of them"
        .format(labelled, max(len(TOKENIZER.encode(json.loads(line)["input"])) for line in labelled.read_text().splitlines())),
        f"{labelled}: only 6 held-out records, so a figure measured on them says little"]
    list(data.train_dataloader())
    assert len(caplog.messages) == 2
    monkeypatch.setenv("RANK", "1")
    assert module(labelled, **fields).data.notes
    assert len(caplog.messages) == 2


def test_the_tokenizer_of_the_config_is_loaded(texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json(), encoding="utf-8")
    config = TrainConfig(train_path=str(texts), tokenizer=str(tmp_path / "tokenizer.json"))
    assert MiniFormerDataModule(config).data.tokenizer.to_json() == TOKENIZER.to_json()


@pytest.mark.parametrize(("fields", "size"), [
    ({"tokenizer_vocab_size": 300}, 300), ({"model_config": {"vocab_size": 310}, "tokenizer_vocab_size": 300}, 310)])
def test_a_tokenizer_is_trained_to_the_size_that_the_config_says(texts, fields, size):
    assert MiniFormerDataModule(TrainConfig(train_path=str(texts), **fields)).data.tokenizer.vocab_size == size


def test_packed_rows_are_as_long_as_the_model_sees(texts):
    for batch in module(texts).train_dataloader():
        assert batch.inputs.shape[1] == 16


def test_packed_rows_hold_the_training_tokens_each_once(texts):
    data = module(texts)
    seen = sorted(int(t) for batch in data.train_dataloader() for t in batch.inputs[batch.layout.real])
    assert seen == sorted(token for example in data.data.train.examples for token in example.tokens)


def test_rows_of_their_own_are_cut_to_what_the_model_sees(labelled):
    data = module(labelled, task="classification", model_config={"max_seq_len": 5})
    shapes = [batch.inputs.shape for batch in data.train_dataloader()]
    assert max(columns for _, columns in shapes) == 5
    assert sum(rows for rows, _ in shapes) == len(data.data.train.examples)


def test_rows_of_their_own_are_batched_with_those_of_their_length(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text("".join(json.dumps({"input": "x" * n, "label": n % 2}) + "\n" for n in range(1, 81)))
    data = module(path, task="classification", val_path=str(path), model_config={"max_seq_len": 100})
    train, val = (max(int((~batch.layout.real).sum(dim=1).max()) for batch in loader)
                  for loader in (data.train_dataloader(), data.val_dataloader()))
    assert val == 3, "batches of 4, in order of length"
    assert train <= 3 + 2 * 0.05 * 80, "nearly so, with some chance"


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_batches_per_epoch_are_those_of_the_loader(texts, batch_size):
    data = module(texts, batch_size=batch_size)
    assert data.batches_per_epoch(1) == len(list(data.train_dataloader())) == len(data.train_dataloader())


def test_each_process_has_its_batches_and_something_to_measure_on(texts):
    data = module(texts, batch_size=1)
    batches = data.batches_per_epoch(1)
    assert data.batches_per_epoch(2) == -(-batches // 2)
    with pytest.raises(SpecError, match=r"val records make \d+ batches of batch_size = 1, and the run has 1000 processes"):
        data.batches_per_epoch(1000)


@pytest.mark.parametrize("task", ["language-modeling", "classification"])
def test_batches_are_the_same_in_the_same_epoch_and_others_in_another(texts, labelled, task):
    path = {"language-modeling": texts, "classification": labelled}[task]
    loader, other = (module(path, task=task).train_dataloader() for _ in range(2))
    assert in_epoch(loader, 3) == in_epoch(loader, 3) == in_epoch(other, 3)
    assert in_epoch(loader, 3) != in_epoch(loader, 4)


def test_another_seed_is_another_order(texts):
    assert tokens_of(module(texts, seed=1).train_dataloader()) != tokens_of(module(texts, seed=2).train_dataloader())


def test_shuffling_rows_changes_none_of_them(texts):
    loader = module(texts, batch_size=1).train_dataloader()
    assert sorted(in_epoch(loader, 0)) == sorted(in_epoch(loader, 1))


def test_held_out_batches_are_in_a_fixed_order(texts):
    loader = module(texts, val_fraction=0.5).val_dataloader()
    assert in_epoch(loader, 0) == in_epoch(loader, 1)


def test_held_out_records_are_each_measured_once(labelled):
    data = module(labelled, task="classification", val_fraction=0.2)
    labels = [int(label) for batch in data.val_dataloader() for label in batch.targets["label"]]
    assert sorted(labels) == sorted(example.target for example in data.data.val.examples)


def test_a_test_file_is_what_is_tested(texts, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"text": "apple"}))
    [batch] = module(texts, test_path=str(test)).test_dataloader()
    assert TOKENIZER.decode(batch.inputs[batch.layout.real]) == "apple"


def test_without_a_test_file_the_held_out_records_are_tested(texts):
    data = module(texts)
    assert tokens_of(data.test_dataloader()) == tokens_of(data.val_dataloader())


def test_worker_processes_give_the_same_batches(texts):
    assert tokens_of(module(texts, num_workers=1).train_dataloader()) == tokens_of(module(texts).train_dataloader())


class Seen(pl.Callback):
    """Notes the tokens of each batch that is trained on, and saves a checkpoint where it is told to."""

    def __init__(self, folder, saves=()):
        self.folder, self.saves, self.seen = folder, saves, []

    def save(self, trainer, moment):
        if (moment, trainer.global_step) in self.saves:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step} {moment}.ckpt")

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        self.seen.append(batch.inputs.tolist())

    def on_train_batch_end(self, trainer, module, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, module):
        self.save(trainer, "measured")

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, "epoch")


MOMENTS = ((2, "batch"), (6, "batch"), (6, "measured"), (6, "epoch"), (8, "measured"), (11, "batch"), (12, "epoch"))


@pytest.mark.parametrize("workers", depth.every(2, [0, 2]))
def test_a_checkpoint_goes_on_with_the_batches_that_are_left(texts, tmp_path, workers):
    def train(saves=(), checkpoint=None):
        data = module(texts, num_workers=workers, cache=False, task="masked-lm", batch_size=12)
        config = data.config.with_fields(model_config={**data.config.architecture, "d_model": 8, "n_heads": 1, "n_layers": 1,
                                                       "vocab_size": TOKENIZER.vocab_size})
        seen = Seen(tmp_path, saves)
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, callbacks=[seen], val_check_interval=2,
                             num_sanity_val_steps=0, use_distributed_sampler=False)
        trainer.fit(MiniFormerLitModule(config, TOKENIZER), datamodule=data, ckpt_path=checkpoint)
        return seen.seen

    whole = train([(moment, step) for step, moment in MOMENTS])
    assert len(whole) == 18 and len({str(batch) for batch in whole}) == 18
    for step, moment in MOMENTS if depth.is_thorough() else MOMENTS[::3]:
        assert train(checkpoint=tmp_path / f"{step} {moment}.ckpt") == whole[step:], (step, moment)
