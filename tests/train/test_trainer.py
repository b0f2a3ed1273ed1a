"""What a run leaves, what it says, and what it refuses."""

import csv
import io
import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import (
    DataError,
    Entry,
    FeedForward,
    LossTerm,
    OutOfMemory,
    Registry,
    RunError,
    SpecError,
    UserError,
    WriteError,
    discover,
    use_registry,
)
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.train.datamodule import MiniFormerDataModule
from miniformer.train.run_folder import new_folder
from miniformer.train.spec_file import run_fields
from miniformer.train.train_config import TrainConfig
from miniformer.train.trainer import train


def run(folder, data, console=None, **fields):
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, **fields.pop("model_config", {})}
    config = TrainConfig(**{"train_path": str(data), "work_dir": str(folder / "runs"), "max_steps": 6, "batch_size": 2,
                            "tokenizer_vocab_size": 300, "precision": 32, "model_config": model, **fields})
    return train(config, console=console)


def losses(result):
    with (result.folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def best(result):
    return result.folder / "checkpoints" / "best_model"


def test_a_run_leaves_its_spec_its_metrics_and_its_checkpoints(tmp_path, texts):
    result = run(tmp_path, texts)
    assert result.folder == tmp_path / "runs" / "texts-language-modeling-1"
    assert {p.name for p in result.folder.iterdir()} == {"run.json", "metrics.csv", "checkpoints"}
    assert {p.name for p in best(result).iterdir()} == {"config.json", "manifest.json", "model.safetensors",
                                                        "tokenizer.json"}
    record = json.loads((result.folder / "run.json").read_text())
    assert record["train"]["scheduler"] == {"name": "cosine", "floor": 0.1}
    assert record["model"]["vocab_size"] == result.data.tokenizer.vocab_size
    assert record["data"]["train"]["records"] == 42
    assert record["providers"].keys() == {"miniformer"}
    assert (record["status"], record["step"]) == ("finished", 6)
    assert record["results"]["best"]["val_loss"] == result.metrics["val_loss"]
    assert set(record["results"]["baselines"]) == {"unigram", "xz -9"}
    assert losses(result)[-1]["val_loss"] == str(result.metrics["val_loss"])


def test_the_next_run_of_the_same_data_gets_the_next_number(tmp_path, texts):
    run(tmp_path, texts, max_steps=1)
    assert run(tmp_path, texts, max_steps=1).folder.name == "texts-language-modeling-2"


def test_two_runs_that_start_at_once_have_a_folder_each(tmp_path, texts, monkeypatch):
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"))
    mkdir = Path.mkdir

    def taken(path, *args, **options):  # by another run, between the look and the making
        if path.name == "texts-language-modeling-1" and not path.exists():
            mkdir(path)
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", taken)
    assert new_folder(config).name == "texts-language-modeling-2"
    monkeypatch.undo()
    named = config.with_fields(experiment_name="mine")
    assert new_folder(named).name == "mine"
    with pytest.raises(UserError, match="mine exists already"):
        new_folder(named)


@pytest.mark.parametrize("task", ["language-modeling", "masked-lm"])
def test_a_run_from_the_cache_is_the_run_that_read_its_files(tmp_path, texts, monkeypatch, task):
    monkeypatch.setattr("miniformer.data.cache.WORTH", 0)
    monkeypatch.setattr("miniformer.data.cache.SETTLED", -1)
    said = [Console(file=io.StringIO(), soft_wrap=True) for _ in range(3)]
    first, second = (run(tmp_path, texts, task=task, console=console) for console in said[:2])
    other = run(tmp_path, texts, task=task, console=said[2], cache=False)
    assert ["from the cache" in console.file.getvalue() for console in said] == [False, True, False]
    for name in ("run.json", "metrics.csv", "checkpoints/best_model/manifest.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert losses(other) == losses(second)
    assert (list(second.data.val.records), second.baselines) == (first.data.val.records, first.baselines)


def test_a_run_that_is_refused_leaves_no_cache(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("miniformer.data.cache.WORTH", 0)
    monkeypatch.setattr("miniformer.data.cache.SETTLED", -1)
    with pytest.raises(SpecError, match="checkpoint_metric"):
        run(tmp_path, texts, checkpoint_metric="val_beauty")
    assert not (tmp_path / "runs").exists()


def test_a_named_run_never_overwrites_another(tmp_path, texts):
    run(tmp_path, texts, experiment_name="mine", max_steps=1)
    with pytest.raises(UserError, match=r"mine exists already; choose another --experiment-name"):
        run(tmp_path, texts, experiment_name="mine")


def test_the_model_is_rebuilt_from_run_json_alone_in_a_fresh_process(tmp_path, texts, fresh_python):
    result = run(tmp_path, texts)
    code = f"""
import json
from safetensors import SafetensorError
from safetensors.torch import load_file
from miniformer.config.model_config import TransformerConfig
from miniformer.model.transformer import Transformer
model = Transformer(TransformerConfig.model_validate(json.load(open({str(result.folder / 'run.json')!r}))["model"]))
print(model.load_state_dict(load_file({str(best(result) / 'model.safetensors')!r}), strict=False).unexpected_keys)
print(sorted(name for name, _ in model.named_parameters()))
"""
    unexpected, names = fresh_python(code).splitlines()
    assert unexpected == "[]"
    assert names == str(sorted(load_file(best(result) / "model.safetensors")))


def test_rope_mha_is_mha_with_rope(tmp_path, texts):
    one = run(tmp_path / "a", texts, model_config={"attention": "rope-mha"})
    other = run(tmp_path / "b", texts, model_config={"attention": "mha", "position": "rope"})
    records = [json.loads((result.folder / "run.json").read_text()) for result in (one, other)]
    assert records[0]["model"] == records[1]["model"]
    assert losses(one) == losses(other)


def test_a_seed_decides_every_weight(tmp_path, texts):
    weights = [load_file(best(run(tmp_path / name, texts, seed=seed)) / "model.safetensors")
               for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in ["embedding.weight"])


def test_a_seed_decides_the_first_weights(tmp_path, texts):
    one, other = (run(tmp_path / name, texts, seed=seed, lr=1e-12, max_steps=1).module.state_dict()["model.embedding.weight"]
                  for name, seed in (("a", 1), ("b", 2)))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("metric", "mode"), [("val_loss", "min"), ("val_accuracy", "max")])
def test_a_run_stops_early_when_its_metric_gets_no_better_its_own_way(tmp_path, labelled, monkeypatch, metric, mode):
    waiting = []
    monkeypatch.setattr("miniformer.train.callbacks.EarlyStopping",
                        lambda monitor, **how: waiting.append((monitor, how["mode"])) or Callback())
    run(tmp_path, labelled, task="classification", checkpoint_metric=metric, early_stopping_patience=3, max_steps=1)
    assert waiting == [(metric, mode)]


def test_gradients_are_cut_to_the_norm_that_the_config_says(tmp_path, texts):
    def trained(name, **fields):
        return run(tmp_path / name, texts, seed=1, scheduler="none", weight_decay=0, **fields).module.state_dict()

    start, cut, free = trained("a", lr=1e-12), trained("b", gradient_clip_val=1e-14), trained("c", gradient_clip_val=None)
    weight = "model.embedding.weight"
    # Adam divides by the size of gradients and adds 1e-8, beside which gradients that small are nothing
    assert torch.allclose(cut[weight], start[weight], atol=1e-6)
    assert not torch.allclose(free[weight], start[weight], atol=1e-3)


def test_the_saved_model_gives_the_loss_that_was_measured(tmp_path, texts):
    result = run(tmp_path, texts)
    model, task = Transformer.from_pretrained(result.folder), result.data.task
    from miniformer.data.packing import PackedRows
    from miniformer.kernel import Context
    batch = task.collate(list(PackedRows(result.data.val.examples, 32)))
    with torch.no_grad():
        term = model(batch.inputs, Context(batch.layout), readout=lambda h, head: task.loss(h, head, batch))
    assert float(term.sum / term.weight) == pytest.approx(result.metrics["val_loss"], rel=1e-5)
    assert result.metrics["val_perplexity"] == pytest.approx(math.exp(result.metrics["val_loss"]), rel=1e-5)


def test_classification_with_string_labels_reports_accuracy_and_f1(tmp_path, labelled):
    result = run(tmp_path, labelled, task="classification", max_steps=60, lr=1e-2, batch_size=8)
    assert {"val_accuracy", "val_f1", "val_loss"} <= set(result.metrics)
    assert result.metrics["val_accuracy"] == 1.0  # the label is a word of the text
    config = json.loads((best(result) / "config.json").read_text())
    assert config["task"] == {"name": "classification", "labels": ["fruit", "tool"], "features": []}


def test_the_last_state_is_loaded_without_running_code(tmp_path, texts):
    state = torch.load(run(tmp_path, texts).folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert state["optimizer_states"][0]["state"]


def test_the_best_model_is_kept_when_later_ones_are_worse(tmp_path, texts):
    result = run(tmp_path, texts, lr=3.0, gradient_clip_val=None, scheduler="none", max_steps=12, val_every=2)
    measured = [float(row["val_loss"]) for row in losses(result) if row["val_loss"]]
    assert len(measured) == 6
    assert result.metrics["val_loss"] == min(measured) < measured[-1]


def test_early_stopping_ends_a_run_that_does_not_get_better(tmp_path, texts):
    result = run(tmp_path, texts, lr=0.5, gradient_clip_val=None, scheduler="none", max_steps=500, val_every=1,
                 early_stopping_patience=2)
    assert len([row for row in losses(result) if row["val_loss"]]) < 100


def test_a_metric_that_is_not_measured_is_told_with_those_that_are(tmp_path, texts):
    with pytest.raises(SpecError, match=r"'val_accuracy' is not measured; measured are val_bits_per_byte, val_loss"):
        run(tmp_path, texts, checkpoint_metric="val_accuracy")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("metric", "best_of"), [("val_accuracy", max), ("val_loss", min)])
def test_a_metric_says_itself_which_way_it_is_better(tmp_path, labelled, metric, best_of):
    result = run(tmp_path, labelled, task="classification", max_steps=30, lr=1e-2, batch_size=8, val_every=3,
                 checkpoint_metric=metric)
    measured = [float(row[metric]) for row in losses(result) if row[metric]]
    assert len(set(measured)) > 1
    assert result.metrics[metric] == best_of(measured)


def test_the_best_model_is_measured_on_the_test_file(tmp_path, texts):
    result = run(tmp_path, texts, test_path=str(texts), val_path=str(texts), lr=3.0, gradient_clip_val=None,
                 scheduler="none", max_steps=12, val_every=2)
    assert result.metrics["test_loss"] == pytest.approx(result.metrics["val_loss"])
    assert result.metrics["step"] < 12
    record = json.loads((result.folder / "run.json").read_text())
    assert record["results"]["best"]["test_loss"] == result.metrics["test_loss"]


def test_baselines_are_measured_on_the_records_that_they_are_compared_on(tmp_path, labelled):
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"input": f"an apple of {n}", "label": "fruit"}) + "\n" for n in range(3)))
    result = run(tmp_path, labelled, task="classification", val_path=str(labelled), test_path=str(test), max_steps=1)
    assert result.baselines == {"always 'tool'": {"accuracy": 0.5}}
    assert result.test_baselines == {"always 'tool'": {"accuracy": 0}}
    record = json.loads((result.folder / "run.json").read_text())
    assert (record["results"]["baselines"], record["results"]["test_baselines"]) == (result.baselines, result.test_baselines)
    assert record["data"]["notes"] == list(result.data.notes) != []


def test_a_run_without_a_test_file_has_no_baselines_of_one(tmp_path, texts):
    result = run(tmp_path, texts, max_steps=1)
    assert result.test_baselines == {}
    assert "test_baselines" not in json.loads((result.folder / "run.json").read_text())["results"]


def test_epochs_bound_a_run_where_steps_do_not(tmp_path, texts):
    result = run(tmp_path, texts, max_epochs=2, max_steps=None, batch_size=16)
    saved = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    data = MiniFormerDataModule(TrainConfig(train_path=str(texts), tokenizer_vocab_size=300, batch_size=16, cache=False,
                                            model_config={"max_seq_len": 32}))
    assert saved["global_step"] == 2 * data.batches_per_epoch(1)


class Gauge(FeedForward):
    """A feed-forward that records two values in training: one for each layer and step, and one of a token each."""

    calls = 0

    def __init__(self, d_model, d_ff):
        super().__init__(d_model, d_ff)
        self.weight = torch.nn.Parameter(torch.ones(d_model))

    def forward(self, x, context):
        if self.training:
            Gauge.calls += 1
            context.record("gauge-calls", torch.tensor(Gauge.calls))
            context.record("gauge-open", torch.tensor([[True, False, False, False]]))
        return x * self.weight


def test_what_components_record_is_a_column_each_and_in_the_progress(tmp_path, texts, monkeypatch):
    """It is the mean over layers and over the steps since the last line: of two layers and ten steps at a time here."""
    monkeypatch.setattr(Gauge, "calls", 0)
    said = Console(file=io.StringIO(), soft_wrap=True)
    registry = Registry([*discover(), Entry("ffn", "gauge", f"{__name__}:Gauge", "acme", "1")])
    registry._classes["ffn", "acme:gauge"] = Gauge
    with use_registry(registry):
        result = run(tmp_path, texts, said, max_steps=20, val_every=20,
                     model_config={"ffn": "gauge", "n_layers": 2})
    rows = [row for row in losses(result) if row["train_loss"]]
    assert [(float(row["recorded_gauge-calls"]), float(row["recorded_gauge-open"])) for row in rows] == [
        (10.5, 0.25), (30.5, 0.25)]
    last = said.file.getvalue().partition("step 20/20")[2].splitlines()[0]
    assert "  gauge-calls 30.5  gauge-open 0.25  " in last


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_loggers_write_into_the_run_folder(tmp_path, texts, logger, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = run(tmp_path, texts, logger=logger, max_steps=2)
    assert any(path.is_file() for path in (result.folder / logger).rglob("*"))
    assert (result.folder / "metrics.csv").is_file()


def test_a_metric_that_is_no_finite_number_is_null_in_run_json(tmp_path, texts):
    result = run(tmp_path, texts, lr=1000.0, max_steps=1, warmup_steps=0)
    assert math.isinf(result.metrics["val_perplexity"])
    reached = json.loads((result.folder / "run.json").read_text())["results"]["best"]
    assert reached["val_perplexity"] is None and reached["val_loss"] > 88


def test_a_run_without_any_finite_measurement_says_so(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("miniformer.tasks.metrics.LossRatio.compute", lambda self: torch.tensor(math.nan))
    with pytest.raises(RunError, match=r"val_loss was no finite number in any measurement, so no model was kept.*"
                       r"\(run folder: .*texts-language-modeling-1\)"):
        run(tmp_path, texts, max_steps=1)
    folder = tmp_path / "runs" / "texts-language-modeling-1"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["step"]) == ("failed", 1)
    assert record["error"].startswith("val_loss was no finite number") and "results" not in record


@pytest.mark.filterwarnings("ignore:the baselines could not be measured")
def test_what_comes_after_training_and_measuring_fails_no_run(tmp_path, texts, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miniformer.tasks.language_modeling.LanguageModeling.baselines", fail)
    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger.finalize", fail)
    result = run(tmp_path, texts, max_steps=1)
    record = json.loads((result.folder / "run.json").read_text())
    assert (record["status"], record["results"]["baselines"]) == ("finished", {})


def test_a_folder_in_which_nothing_can_be_written_is_removed(tmp_path, texts, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miniformer.checkpoint.atomic._put", fail)
    with pytest.raises(WriteError, match=r"texts-language-modeling-1/run\.json: cannot be written: No space left on device; "):
        run(tmp_path, texts)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(("writer", "error", "file"), [
    ("miniformer.train.callbacks.torch.save", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
     "last.ckpt"),
    ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device (os error 28)"), "model.safetensors"),
    ("pytorch_lightning.loggers.CSVLogger.log_metrics", OSError(28, "No space left on device"), "metrics.csv"),
])
def test_a_disk_that_gets_full_ends_a_run_with_the_file_and_says_so_in_run_json(tmp_path, texts, monkeypatch, writer, error,
                                                                                file):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(writer, fail)
    with pytest.raises(WriteError, match=rf"/{file}: cannot be written: .* are free there .*run folder") as caught:
        run(tmp_path, texts, max_steps=20)
    assert caught.value.exit_code == 2
    files = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert file not in files
    if "run.json" in files:
        record = json.loads((tmp_path / "runs" / "texts-language-modeling-1" / "run.json").read_text())
        assert record["status"] == "failed" and file in record["error"]


def test_a_run_with_a_tokenizer_of_its_own_can_be_made_again_from_run_json(tmp_path, texts):
    tokenizer = Tokenizer.train(["1 2 3 of a number"], 300)
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"), max_steps=1, batch_size=2, precision=32,
                         model_config={"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32})
    first = train(config, tokenizer=tokenizer)
    record = json.loads((first.folder / "run.json").read_text())
    second = train(TrainConfig.model_validate(run_fields(record)))
    assert second.folder.name == "texts-language-modeling-2"
    assert (best(first) / "model.safetensors").read_bytes() == (best(second) / "model.safetensors").read_bytes()


def test_a_run_that_fails_before_it_saved_anything_leaves_no_folder(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("miniformer.train.module.MiniFormerLitModule._loss", lambda self, batch: LossTerm(
        torch.tensor(math.nan), torch.tensor(1)))
    with pytest.raises(RunError, match=r"the loss is nan at step 0.*nothing was saved, so the run folder .*mine was removed"):
        run(tmp_path, texts, experiment_name="mine")
    assert not (tmp_path / "runs" / "mine").exists()


def test_memory_that_runs_out_in_a_run_is_told_with_what_needs_less(tmp_path, texts, monkeypatch):
    def run_out(self, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes.")

    monkeypatch.setattr("miniformer.train.module.MiniFormerLitModule._loss", run_out)
    with pytest.raises(OutOfMemory, match=r"memory ran out: 32\.00 GiB more .* a smaller batch_size, max_seq_len.* needs less.*"
                       r"\(nothing was saved, so the run folder .*mine was removed\)"):
        run(tmp_path, texts, experiment_name="mine")
    assert not (tmp_path / "runs" / "mine").exists()

def test_a_run_whose_worker_is_killed_says_which_and_why_in_one_line(tmp_path, texts, monkeypatch):
    """As the system does when memory runs out; torch says it in a traceback of forty lines."""
    def killed(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("miniformer.data.sampler.Drawn.__getitem__", killed)
    with pytest.raises(RunError, match=r"^the worker process with pid \d+, which made batches, was killed by SIGKILL; the "
                       r"system does this when memory runs out: a smaller num_workers or batch_size needs less \(nothing "):
        run(tmp_path, texts, num_workers=1)
    assert not list((tmp_path / "runs").glob("texts*"))


def test_a_run_may_be_outside_the_main_thread(tmp_path, texts):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, tmp_path, texts, max_steps=1).result().metrics["step"] == 1


# --- what is refused, before anything is written

def test_a_run_of_more_processes_than_held_out_batches_leaves_nothing(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("miniformer.train.lightning_setup.launched", lambda: (1000, 1))
    with pytest.raises(SpecError, match="the run has 1000 processes"):
        run(tmp_path, texts)
    assert not (tmp_path / "runs" / "texts-language-modeling-1").exists()



@pytest.mark.parametrize(("fields", "error", "text"), [
    ({"model_config": {"vocab_size": 10}}, SpecError, r"vocab_size is 10, and the tokenizer has \d+ tokens"),
    ({"model_config": {"output_dim": 7}}, SpecError, r"output_dim is 7, and task 'language-modeling' has \d+ outputs"),
    ({"model_config": {"causal": False}}, SpecError, r"trains a model with causal: true"),
    ({"model_config": {"n_heads": 3}}, SpecError, r"d_model 16 must be a multiple of n_heads 3"),
    ({"gpus": 1000}, UserError, r"gpus is 1000, and this machine has \d+"),
    pytest.param({"precision": 16}, SpecError, r"precision is 16, and float16 needs a GPU, .*expected bf16 or 32",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ({"precision": 16, "gpus": 0}, SpecError, r"precision is 16"),
    ({"val_path": "nowhere.jsonl"}, DataError, r"nowhere.jsonl: no such file"),
    ({"tokenizer": "nowhere.json"}, DataError, r"nowhere.json: no such tokenizer file"),
])
def test_a_mistake_leaves_no_run_folder(tmp_path, texts, fields, error, text):
    with pytest.raises(error, match=text):
        run(tmp_path, texts, **fields)
    assert not (tmp_path / "runs").exists()


def refused(tmp_path, error, text, **fields):
    """A run is refused although its data are not there, so before they are read."""
    with pytest.raises(error, match=text):
        run(tmp_path, "nowhere.jsonl", **fields)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("logger", "packages"), [("wandb", ["wandb"]), ("tensorboard", ["tensorboard", "tensorboardX"])])
def test_a_logger_that_is_not_installed_is_missed_before_the_data_is_read(tmp_path, monkeypatch, logger, packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    refused(tmp_path, UserError, rf"logger '{logger}' is not installed; to get it: pip install 'miniformer\[{logger}\]'",
            logger=logger)


def test_a_logger_that_cannot_be_imported_is_missed_before_the_data_is_read(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text("raise ImportError('needs a newer protobuf')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    refused(tmp_path, UserError, r"logger 'wandb' cannot be imported \(needs a newer protobuf\)", logger="wandb")


def test_wandb_without_a_key_is_missed_before_the_data_is_read(tmp_path, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    refused(tmp_path, UserError, r"logger 'wandb' has no API key; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE",
            logger="wandb")


def test_a_logger_that_cannot_start_leaves_no_run_folder(tmp_path, texts, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("miniformer.train.lightning_setup.WandbLogger.experiment", property(lambda self: 1 / 0))
    with pytest.raises(UserError, match="logger 'wandb' cannot start: division by zero; with WANDB_MODE=offline it needs no"):
        run(tmp_path, texts, logger="wandb")
    assert list((tmp_path / "runs").glob("texts*")) == []


def test_a_compiler_that_is_not_there_is_missed_before_the_data_is_read(tmp_path, monkeypatch):
    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    refused(tmp_path, UserError, r"compile: No working C\+\+ compiler found; install g\+\+ or clang\+\+", compile=True, gpus=0)


def test_a_metric_that_the_task_has_not_is_missed_after_the_first_records(tmp_path, labelled):
    with labelled.open("a") as file:
        file.write("no record\n")
    with pytest.raises(SpecError, match="'val_acuracy' is not measured; did you mean 'val_accuracy'"):
        run(tmp_path, labelled, task="classification", checkpoint_metric="val_acuracy")


def test_notes_on_settings_are_said_before_training(tmp_path, texts):
    console = Console(file=io.StringIO(), soft_wrap=True)
    run(tmp_path, texts, console=console, max_steps=1, warmup_steps=30)
    said = console.file.getvalue()
    assert "note: warmup_steps is 30, and the run has 1 step" in said.partition("step 1/1")[0]


def test_a_work_dir_that_is_a_file_is_refused(tmp_path, texts):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="a file; expected a folder"):
        run(tmp_path, texts)


# --- encoder-decoders

def test_a_task_with_a_source_leaves_an_encoder_decoder(tmp_path, pairs):
    result = run(tmp_path, pairs, task="seq2seq")
    record = json.loads((result.folder / "run.json").read_text())
    assert (record["train"]["model"], record["task"]) == ("seq2seq", {"name": "seq2seq"})
    assert json.loads((best(result) / "config.json").read_text())["assembly"] == "seq2seq"
    assert {"val_loss", "val_perplexity", "val_accuracy", "val_exact_match"} <= result.metrics.keys()
    again, source = Seq2SeqTransformer.from_pretrained(result.folder), torch.tensor([[1, 5, 6]])
    assert torch.equal(again(source, source)[0], result.module.model(source, source)[0])
    with pytest.raises(UserError, match="this model is a seq2seq; load it with Seq2SeqTransformer"):
        Transformer.from_pretrained(result.folder)


def test_a_saved_model_knows_where_texts_start_and_end(tmp_path, pairs):
    result = run(tmp_path, pairs, task="seq2seq", max_steps=1)
    config = Seq2SeqTransformer.from_pretrained(best(result)).config
    assert (config.bos_id, config.eos_id) == (result.data.tokenizer.bos_id, result.data.tokenizer.eos_id)


def test_language_modelling_with_an_encoder_decoder_is_that_of_the_rest_of_texts(tmp_path, texts):
    result = run(tmp_path, texts, task="language_modeling", model="seq2seq")
    record = json.loads((result.folder / "run.json").read_text())
    assert record["task"] == {"name": "prefix-lm", "part": 0.5}
    assert set(result.metrics) == {"step", "val_loss", "val_perplexity", "val_bits_per_byte"}
    assert train(TrainConfig.model_validate({**record["train"], "experiment_name": "again", "max_steps": 1})).folder.exists()


@pytest.mark.parametrize("fields", [{"activation_checkpointing": True}, {"dropout": 0.1, "share_embeddings": False}])
def test_both_assemblies_train_as_their_config_says(tmp_path, texts, pairs, fields):
    for data, task in ((texts, "language-modeling"), (pairs, "seq2seq")):
        assert math.isfinite(run(tmp_path, data, task=task, model_config=fields, max_steps=2).metrics["val_loss"])


def test_a_long_source_and_a_long_target_are_cut_to_what_the_model_takes(tmp_path):
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"source": f"{n} " * 50, "target": f"{n} " * 40}) + "\n" for n in range(6)))
    result = run(tmp_path, data, task="seq2seq", max_steps=1, model_config={"position": "learned"})
    assert {len(e.source) for e in result.data.train.examples} == {32}
    assert {len(e.tokens) for e in result.data.train.examples} == {33}


def test_a_model_that_cannot_cross_is_told_before_the_data_is_read(tmp_path):
    with pytest.raises(SpecError, match=r"Window\(size=4\) compares positions in one sequence"):
        run(tmp_path, tmp_path / "missing.jsonl", task="seq2seq",
            model_config={"cross_attention": {"name": "mha", "window": 4}})
