"""`miniformer train`: what flags, files and defaults add up to, what it prints, and how it refuses."""

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from depth import thorough
from small_tokenizers import byte_fallback, with_gaps, word_piece

from miniformer.cli.train import _report as show_report
from miniformer.cli.train import merged
from miniformer.kernel import Entry, Registry, UserError, discover, use_registry

# --- one config from everything that was said

def test_flags_overrule_the_file_which_overrules_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 0.5\nseed: 7\nmodel_config: {d_model: 32, n_layers: 3}\n")
    config = merged(str(file), '{"n_layers": 5, "n_heads": 2}', {"run_lr": "0.25", "model_n_heads": "8"})
    assert (config.lr, config.seed, config.batch_size) == (0.25, 7, 16)
    assert config.architecture == {"d_model": 32, "n_layers": 5, "n_heads": 8}


def test_set_reaches_any_option_by_its_path():
    config = merged(None, None, {"model_ffn": "swiglu"}, (
        "attention.n-kv-heads=2", "ffn.bias=true", "scheduler.floor=0", "task.labels=[\"a\", \"b\"]", "lr=1e-4",
        "model_config.d_model=64", "position.name=learned"))
    assert config.architecture == {"ffn": {"name": "swiglu", "bias": True}, "attention": {"name": "mha", "n_kv_heads": 2},
                                   "d_model": 64, "position": {"name": "learned"}}
    assert config.scheduler.options == {"floor": 0}
    assert config.lr == 1e-4


def test_none_on_the_command_line_is_nothing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("{tokenizer: words.json, experiment_name: mine, max_steps: 3}")
    config = merged(str(file), None, {f"run_{name}": "none" for name in ("tokenizer", "experiment_name", "max_steps")})
    assert (config.tokenizer, config.experiment_name, config.max_steps) == (None, None, None)


def test_set_keeps_the_options_that_the_file_gives(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model_config: {attention: {name: mha, window: 8}}\n")
    config = merged(str(file), None, {"model_attention": "mha"}, ("attention.n_kv_heads=1",))
    assert config.architecture["attention"] == {"name": "mha", "window": 8, "n_kv_heads": 1}


def test_another_component_on_the_command_line_drops_the_files_options(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model_config: {ffn: {name: gelu, bias: true}}\n")
    assert merged(str(file), None, {"model_ffn": "swiglu"}).architecture["ffn"] == "swiglu"


def test_text_is_a_number_where_the_models_field_is_one():
    config = merged(None, '{"output_dim": "3"}', {"model_vocab_size": "500", "model_input_dim": "none",
                                                  "model_causal": "yes"})
    assert config.architecture == {"output_dim": 3, "vocab_size": 500, "input_dim": None, "causal": True}


@pytest.mark.parametrize(("name", "text"), [("d_model", "many"), ("n_layers", "yes"), ("dropout", "0,1"), ("causal", "ja"),
                                            ("norm_placement", "before")])
def test_text_that_should_be_a_number_of_the_model_is_refused_before_the_model_is_built(name, text):
    with pytest.raises(UserError, match=f"^model_config.{name}: input should be .*; found '{text}'"):
        merged(None, None, {f"model_{name}": text})


@pytest.mark.parametrize(("content", "text"), [
    ("model_config: small", "model_config: expected a mapping of fields; found 'small'"),
    ("extensions: [lora]", "extensions: expected a mapping of fields; found \\['lora'\\]"),
])
def test_a_file_with_something_else_where_fields_are_expected_is_refused(tmp_path, content, text):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=f"run.yaml: {text}"):
        merged(str(file), None, {}, extensions=("lora",))


def test_an_extension_without_options_in_the_file_is_activated(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("extensions:\n")
    with pytest.raises(UserError, match="there is no extension named 'lora'"):
        merged(str(file), None, {}, extensions=("lora",))


def test_extensions_on_the_command_line_join_those_of_the_file_which_keep_their_options(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("extensions: {one: {by: 3}, two: {by: 4}}\n")
    entries = [Entry("extension", name, "nowhere:Nothing", "acme", "1.0") for name in ("one", "two", "three")]
    with use_registry(Registry([*discover(), *entries])):
        config = merged(str(file), None, {}, extensions=("two", "three"))
    assert config.extensions == {"one": {"by": 3}, "two": {"by": 4}, "three": {}}


@pytest.mark.parametrize(("content", "setting", "text"), [
    ("lr: 0.1", "lr.x=1", "--set lr.x: in lr: expected a mapping of fields; found 0.1"),
    ("model_config: {layers: [{repeat: 2}]}", "layers.0.attention=mqa", "--set layers.0.attention: in layers: expected"),
])
def test_a_set_into_what_has_no_fields_is_refused(tmp_path, content, setting, text):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=text):
        merged(str(file), None, {}, (setting,))


def test_what_a_run_saved_is_a_config_file(tmp_path):
    config = merged(None, '{"d_model": 64}', {"run_task": "classification"}, ("scheduler.floor=0.5",))
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config.to_data()))
    assert merged(str(file), None, {}) == config


@pytest.mark.parametrize(("setting", "text"), [
    ("attention.window", "expected PATH=VALUE"),
    ("atention.window=3", "there is no 'atention'; did you mean 'attention'"),
    ("head.tied=false", "name the head too"),
])
def test_a_set_that_reaches_nothing_is_refused(setting, text):
    with pytest.raises(UserError, match=text):
        merged(None, None, {}, (setting,))


@pytest.mark.parametrize(("content", "text"), [
    ("lr: [", "not YAML"), ("- 1", "expected a mapping of fields; found list"), ("lrr: 1", "did you mean 'lr'"),
    ("task: classify", "run.yaml:1: there is no task named 'classify'"), ("", "found nothing"),
    ("lr: -1", "run.yaml:1: lr: input should be greater than 0; found -1"),
    ("lr: 1\nlr: 2", "run.yaml:2: not YAML: field 'lr'"),
    ("model_config: {d_modell: 8}", "run.yaml:1: model_config.d_modell: there is no 'd_modell' here"),
])
def test_a_config_file_that_says_nothing_usable_is_refused(tmp_path, content, text):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UserError, match=text):
        merged(str(tmp_path / "run.yaml"), None, {})


def test_a_mistake_on_the_command_line_is_not_the_files(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: -1")
    assert merged(str(tmp_path / "run.yaml"), None, {"run_lr": "1"}).lr == 1
    (tmp_path / "run.yaml").write_text("lr: 1")
    with pytest.raises(UserError, match=r"^lr: input should be greater than 0; found '-1'"):
        merged(str(tmp_path / "run.yaml"), None, {"run_lr": "-1"})


# --- mistakes, from outside

@pytest.mark.parametrize(("args", "text"), [
    (["--attention", "rope-mah"], "there is no attention named 'rope-mah'\n  did you mean: rope-mha\n"),
    (["--ffn", "moe"], "to get it: pip install miniformer-moe"),
    (["--ffn", "mha"], "there is an attention of that name"),
    (["--task", "classify"], "did you mean: classification"),
    (["--optimizer", "adam"], "did you mean: adamw"),
    (["--atention", "mha"], "'--attention'"),
    (["--learning-rate", "1"], "there is no option '--learning-rate'; did you mean '--lr'?"),
    (["--lora"], "there is no option '--lora'; there is no LoRA here"),
    (["--set", "hidden_size=8"], "there is no 'hidden_size'; did you mean 'd_model'?"),
    (["--work-dir", "/proc/none/runs"], "cannot be written: /proc: "),
    (["--lr", "-1"], "lr: input should be greater than 0; found '-1'"),
    (["--model-config", "{"], "--model-config: not JSON"),
    (["--model-config", '{"d_modell": 3}'], "model_config.d_modell: there is no 'd_modell' here; did you mean 'd_model'"),
    (["--config", "nowhere.yaml"], "nowhere.yaml: there is no run, model or file of that name"),
    (["--train-path", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["--train-path", "-", "--test-path", "-"], "standard input can be read once, and is given 2 times"),
    (["--with", "lora"], "there is no extension named 'lora'"),
    (["--experiment-name", "e" * 256], "File name too long: it has 256 bytes; expected at most 255"),
])
def test_a_typo_is_told_at_once_without_traceback(cli, args, text):
    done = cli("train", *args, code=2, PYTHONPROFILEIMPORTTIME="1")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert " torch\n" not in done.stderr


def test_several_processes_cannot_share_standard_input(cli):
    told = cli("train", "--train-path", "-", code=2, LOCAL_WORLD_SIZE="2", WORLD_SIZE="2").stderr
    assert "standard input can be read by one process alone" in told


@pytest.mark.parametrize(("content", "text"), [
    (b'{"text": "a"}\n{"text": \n', "data.jsonl:2: not JSON"),
    (b'{"text": "a"}\n\n{"txt": "b"}\n', "data.jsonl:3: field 'text' is missing; found 'txt'; did you mean 'txt'?"),
    (b"", "data.jsonl: no records; expected one JSON object in each line"),
    (b'{"text": "\xff"}\n', "data.jsonl:1: not UTF-8: byte 0xff at column 11"),
    (None, "data.jsonl: a directory; expected a file of JSON lines"),
])
def test_a_file_that_cannot_be_used_is_one_clear_line_and_no_run_folder(cli, tmp_path, content, text):
    path = tmp_path / "data.jsonl"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    done = cli("train", "--train-path", "data.jsonl", code=2)
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {text.partition(' ')[0]}")
    assert text in errors[0]
    assert not (tmp_path / "runs").exists()


# --- a run that is made again

def written_run(tmp_path, **fields):
    """A run.json as training writes it, of a run called `mine`."""
    train = {**merged(None, '{"d_model": 64}', {"run_task": "classification", "run_lr": "1e-5"}).to_data(),
             "experiment_name": "mine", **fields}
    record = {"miniformer": "0.1.0", "model": {"d_model": 64, "vocab_size": 300}, "task": train["task"], "train": train,
              "providers": {"miniformer": "0.1.0"}, "packages": {}, "data": {}, "status": "finished", "step": 9, "results": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path / "run.json"


def test_of_a_run_json_the_settings_are_taken_and_not_the_results(tmp_path):
    file = written_run(tmp_path)
    config = merged(str(file), None, {"run_seed": "7"}, ("attention.window=8",))
    assert (config.lr, config.seed, config.task.name, config.experiment_name) == (1e-5, 7, "classification", None)
    assert config.architecture == {"d_model": 64, "attention": {"name": "mha", "window": 8}}
    assert merged(str(tmp_path), None, {"run_experiment_name": "other"}).experiment_name == "other", "its folder will do"


def test_a_run_json_with_a_wrong_field_is_blamed(tmp_path):
    with pytest.raises(UserError, match=r"run\.json:\d+: lr: input should be greater than 0; found -1"):
        merged(str(written_run(tmp_path, lr=-1)), None, {})


def test_the_config_of_a_saved_model_is_a_run_that_trains_such_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "assembly": "seq2seq", "extensions": {}, "model": {"d_model": 64}, "task": {"name": "prefix-lm"},
        "providers": {"miniformer": "0.1.0"}}))
    config = merged(str(tmp_path), None, {"run_lr": "0.5"})
    assert (config.model, config.task.name, config.architecture, config.lr) == ("seq2seq", "prefix-lm", {"d_model": 64}, 0.5)


def test_a_run_that_is_made_again_has_a_folder_of_its_own_and_the_same_weights(cli, labelled, tiny, tmp_path):
    cli("train", "--task", "classification", "--train-path", str(labelled), *tiny, "--max-steps", "3", "--experiment-name",
        "mine", "--lr", "1e-2", "--set", "optimizer.eps=1e-9", "--seed", "5")
    again = cli("train", "--config", "runs/mine/run.json")
    assert "run folder: runs/labelled-classification-1\n" in again.stdout
    folders = [tmp_path / "runs" / name for name in ("mine", "labelled-classification-1")]
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        one, other = ((folder / "checkpoints" / "best_model" / file).read_bytes() for folder in folders)
        assert one == other
    one, other = (json.loads((folder / "run.json").read_text()) for folder in folders)
    assert one["train"].pop("experiment_name") == "mine" and other["train"].pop("experiment_name") is None
    assert one == other


# --- what comes after a run that is finished

@pytest.mark.parametrize("error", [RuntimeError("no sample"), UserError("no prompt"), UnicodeError("no such character"),
                                   OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_report_that_cannot_be_shown_is_a_note_and_changes_no_exit_code(tmp_path, monkeypatch, capsys, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("miniformer.cli.shared.run_report.report", fail)
    show_report(None, SimpleNamespace(folder=tmp_path / "runs" / "mine"))
    said = capsys.readouterr().err
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    assert said == f"note: the run is finished, and in {tmp_path}/runs/mine; its report could not be shown: {reason}\n"


def test_a_tokenizer_that_cannot_be_used_is_told_before_data_is_read(cli, texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text("[]")
    for path, told in (("tokenizer.json", "not a tokenizer of the tokenizers library"), ("nowhere", "no such tokenizer file")):
        done = cli("train", "--train-path", str(texts), "--tokenizer", path, code=2)
        assert told in done.stderr and not done.stdout


@pytest.mark.parametrize(("held_out", "prompt"), [(["", " ", "red green blue"], "red green"), (["", "hello"], "hello")])
def test_a_sample_is_asked_for_with_the_first_held_out_text_that_has_words(cli, texts, tiny, tmp_path, held_out, prompt):
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    said = cli("train", "--train-path", str(texts), "--val-path", "held.jsonl", "--work-dir=-dashed", "--max-steps", "1",
               *tiny).stdout
    assert f"\nsample:\n{prompt}" in said and f"--prompt {shlex.quote(prompt)}" in said
    assert "next: miniformer generate ./-dashed/texts-" in said, "no option begins with a dot"


def test_a_sample_of_an_encoder_decoder_is_of_the_first_held_out_source_that_has_words(cli, pairs, tiny, tmp_path):
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"source": text, "target": "7"}) + "\n" for text in ("", "say 7")))
    said = cli("train", "--task", "seq2seq", "--train-path", str(pairs), "--val-path", "held.jsonl", "--max-steps", "1",
               *tiny).stdout
    assert "\nsample:\nsay 7\n-> " in said and "--prompt 'say 7'" in said


def test_a_sample_that_cannot_be_made_leaves_the_rest_of_the_report(cli_here, texts, tiny, monkeypatch):
    def fail(*args, **options):
        raise UserError("the prompt is empty")

    monkeypatch.setattr("miniformer.inference.engine.Engine.generate", fail)
    said = cli_here("train", "--train-path", str(texts), "--max-steps", "1", *tiny).stdout
    assert "(none could be made: the prompt is empty)" in said and "\nrun folder: " in said and "\nnext: " in said


# --- real runs

def test_a_file_whose_name_is_no_utf_8_is_trained_on_and_its_run_made_again(cli_process, texts, tiny, tmp_path):
    name = os.fsdecode(b"caf\xe9[1].jsonl")
    texts.rename(tmp_path / name)
    cli_process("train", "--train-path", name, "--max-steps", "1", *tiny)
    record = json.loads((tmp_path / "runs" / "caf_[1]-language-modeling-1" / "run.json").read_text(encoding="utf-8"))
    assert record["train"]["train_path"] == name
    cli_process("train", "--config", "runs/caf_[1]-language-modeling-1/run.json")
    assert (tmp_path / "runs" / "caf_[1]-language-modeling-2" / "checkpoints" / "best_model").is_dir()


def test_a_run_on_a_file_says_what_it_reached_and_what_to_type_next(cli, cli_process, texts, tiny, tmp_path):
    text = cli_process("train", "--attention", "rope-mha", "--ffn", "swiglu", "--train-path", str(texts), "--test-path",
                       str(texts), "--max-steps", "4", *tiny)
    assert "log_every_n_steps" not in text.stderr
    text = text.stdout
    assert "tokens/s" in text
    held_out, test = text.partition("test file (42), best model of step")[::2]
    assert "held-out records (3), best model of step" in held_out
    for table in (held_out, test):
        assert "this model" in table and "unigram" in table and "xz -9" in table
    assert "run folder: runs/texts-language-modeling-1" in text
    following = text.partition("next: miniformer ")[2].splitlines()[0]
    *_, prompt = args = shlex.split(following)
    assert any(json.loads(line)["text"].startswith(prompt) for line in texts.read_text().splitlines())
    assert cli(*args).stdout.startswith(prompt) and prompt


def test_it_says_what_it_does_before_anything_heavy_is_imported(texts, tmp_path):
    code = ("import sys; sys.modules['torch'] = None\n"
            f"from miniformer.cli import main; main(['train', '--train-path', {str(texts)!r}, '--task', 'classification'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "import of torch halted" in done.stderr
    assert done.stdout == f"reading {texts}\n"


def test_a_pipe_is_read_once_and_whole(cli, texts, tiny, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", str(texts), str(tmp_path / "pipe")]):
        cli("train", "--train-path", "pipe", "--max-steps", "1", *tiny)
    record = json.loads((tmp_path / "runs" / "pipe-language-modeling-1" / "run.json").read_text())
    assert record["data"]["train"]["records"] == 42


def test_standard_input_is_read_once_and_whole(texts, tiny, tmp_path):
    done = subprocess.run([sys.executable, "-m", "miniformer", "train", "--train-path", "-", "--max-steps", "1",
                           *tiny], cwd=tmp_path, input=texts.read_text(), capture_output=True,
                          text=True, timeout=300)
    assert done.stdout.startswith("reading standard input\n"), done.stderr
    record = json.loads((tmp_path / "runs" / "stdin-language-modeling-1" / "run.json").read_text())
    assert (record["data"]["train"]["source"], record["data"]["train"]["records"]) == ("standard input", 42)


def test_a_run_of_few_positions_and_a_size_of_vocabulary_ends_with_its_sample(cli, texts, tiny):
    said = cli("train", "--train-path", str(texts), *tiny, "--max-steps", "1", "--position", "learned", "--max-seq-len", "16",
               "--vocab-size", "350").stdout
    assert "\nsample:\n" in said and "\nnext: " in said


@pytest.mark.parametrize("make", [with_gaps, lambda: word_piece().backend, lambda: byte_fallback().backend],
                         ids=["ids with gaps", "WordPiece", "byte fallback"])
def test_a_tokenizer_of_any_kind_can_be_trained_with_and_written_with(cli, texts, tiny, tmp_path, make):
    make().save(str(tmp_path / "own.json"))
    cli("train", "--train-path", str(texts), "--tokenizer", "own.json", "--max-steps", "2", *tiny[:-2])
    done = cli("evaluate", "runs/texts-language-modeling-1", "--data", str(texts), "--json")
    assert 0 < json.loads(done.stdout)["bits_per_byte"] < 20
    assert cli("generate", "runs/texts-language-modeling-1", "--prompt", "abc", "--max-new-tokens", "4").stdout


def test_underscores_and_dashes_are_the_same(cli, texts, tiny):
    cli("train", "--train_path", str(texts), "--max_steps", "1", "--task", "language_modeling", *tiny)


def test_the_module_of_the_brief_is_the_command(tmp_path, texts, tiny):
    done = subprocess.run([sys.executable, "-m", "miniformer.train.trainer", "--train_path", str(texts), "--max_steps", "1",
                           *tiny], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "run folder" in done.stdout


def test_classification_on_string_labels_reports_accuracy_and_f1(cli, labelled, tiny, tmp_path):
    text = cli("train", "--task", "classification", "--train-path", str(labelled), "--max-steps", "4", *tiny,
               "--experiment-name", "a b", COLUMNS="20").stdout
    assert "run folder: runs/a b\nnext: miniformer predict 'runs/a b' --input FILE.jsonl\n" in text
    results = json.loads((tmp_path / "runs" / "a b" / "run.json").read_text())["results"]
    assert all(f"{value:.4g}" in text for name, value in results["best"].items() if name != "step"), "no number is cut"
    assert "accuracy" in text
    assert "f1" in text
    assert "\nalways " in text, "a row for each baseline, its cells below it where they have no room beside it"


@thorough
@pytest.mark.slow
def test_classification_on_the_standard_library_beats_always_saying_the_same(cli, tmp_path):
    cli("train", "--task", "classification", "--max-steps", "150", "--d-model", "64", "--n-layers", "2", "--max-seq-len",
        "64")
    results = json.loads((tmp_path / "runs" / "stdlib-classification-1" / "run.json").read_text())["results"]
    (baseline,) = results["baselines"].values()
    assert results["best"]["val_accuracy"] > 2 * baseline["accuracy"]


def test_a_run_that_measures_on_its_training_records_says_so(cli, labelled, tiny):
    text = cli("train", "--task", "classification", "--train-path", str(labelled), "--val-path", str(labelled), "--max-steps",
               "1", *tiny).stdout
    assert "vocabulary: 300; labels: 2\n" in text and "\nthe training records themselves (120), best model of step 1" in text


def test_an_encoder_decoder_is_asked_a_held_out_source(cli, pairs, tiny):
    text = cli("train", "--task", "seq2seq", "--train-path", str(pairs), *tiny, "--max-steps", "2", "--set",
               "cross_attention.n_kv_heads=1").stdout
    assert "\nsample:\nsay " in text and "\n-> " in text
    command = text[text.index("next: miniformer "):].removeprefix("next: miniformer ").splitlines()[0]
    assert command.startswith("generate runs/pairs-seq2seq-1 --prompt 'say ")
    cli(*shlex.split(command))


def test_an_unknown_cross_attention_is_told_with_what_there_is(cli, pairs):
    said = cli("train", "--task", "seq2seq", "--train-path", str(pairs), "--cross-attention", "mhaa", code=2).stderr
    assert "there is no attention named 'mhaa'" in said
