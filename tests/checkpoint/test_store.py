import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniformer.checkpoint.store import WEIGHTS, digest, load_weights, read_model, unshared, write_model
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import (
    Entry,
    Registry,
    RunError,
    UnknownComponent,
    UserError,
    WriteError,
    discover,
    hookimpl,
    use_registry,
)
from miniformer.model.transformer import Transformer

FAKES = str(Path(__file__).parents[1] / "kernel" / "fakes")
SMALL = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}


@pytest.fixture
def model():
    return Transformer(TransformerConfig(**SMALL)).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    """The folder with other weights, and a manifest that fits them."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.safetensors"] = digest(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder):
    with pytest.raises(UserError) as error:
        Transformer.from_pretrained(folder)
    return str(error.value)


def test_a_saved_model_is_its_config_its_weights_and_their_digests(folder):
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "manifest.json"}
    assert set(json.loads((folder / "manifest.json").read_text())) == {"config.json", "model.safetensors"}


def test_a_saved_config_is_the_resolved_spec_with_its_providers(folder, model):
    config = json.loads((folder / "config.json").read_text())
    assert config["assembly"] == "transformer"
    assert TransformerConfig.model_validate(config["model"]) == model.config
    assert list(config["providers"]) == ["miniformer"]


def test_a_tokenizer_is_saved_beside_the_model_and_checked(tmp_path):
    write_model(tmp_path / "m", {"w": torch.zeros(1)}, {"model": {}}, tokenizer='{"version": "1.0"}')
    assert (tmp_path / "m" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert "tokenizer.json" in json.loads((tmp_path / "m" / "manifest.json").read_text())


def test_a_model_is_read_from_its_folder_and_from_a_run_folder(folder, model, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "run" / "checkpoints" / "best_model")
    row = torch.tensor([[1, 2, 3]])
    for place in (folder, tmp_path / "run", str(folder)):
        assert torch.equal(Transformer.from_pretrained(place)(row), model(row))


@pytest.mark.parametrize("place", ["model", "run/checkpoints/best_model"])
def test_a_replacement_that_was_interrupted_is_recovered(model, tmp_path, place):
    model.save_pretrained(tmp_path / place)
    (tmp_path / place).rename((tmp_path / place).with_name(f".{Path(place).name}.previous"))
    named = tmp_path / place.removesuffix("/checkpoints/best_model")
    assert Transformer.from_pretrained(named).config == model.config


def test_a_model_is_read_from_the_folder_one_stands_in(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    assert Transformer.from_pretrained(".").config == model.config


def test_saving_over_a_model_replaces_it(folder):
    other = Transformer(TransformerConfig(**{**SMALL, "n_layers": 2}))
    other.save_pretrained(folder)
    assert Transformer.from_pretrained(folder).config == other.config


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_without_a_model_is_told(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    assert "no saved model here; expected a run folder, or a folder with config.json and" in refused(place)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert f"{name}: damaged" in refused(folder)


def test_a_file_cut_short_is_found(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    assert "model.safetensors: damaged" in refused(folder)


def test_a_folder_that_is_not_there_is_told_with_what_is_near(folder):
    missing, told = folder.with_name("modle"), "there is no run, model or file of that name"
    assert refused(missing) == f"{missing}: {told}; did you mean '{folder}'?"
    assert refused(folder / "config.json").endswith(f"config.json: a file; expected a run folder; did you mean '{folder}'?")
    assert f"a file of weights; expected the folder of its run; did you mean '{folder}'?" in refused(folder / WEIGHTS)


def test_of_runs_that_are_there_those_with_a_similar_name_come_first_then_the_latest(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("x/no-such").endswith("of that name; runs: model")
    for number, name in enumerate(("runs/old", "runs/new")):
        shutil.copytree(folder, tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    os.utime(folder, (5, 5))
    assert refused("no-such").endswith("of that name; runs: model, runs/new, runs/old")
    assert refused("olt").endswith("of that name; did you mean 'runs/old'?; other runs: model, runs/new")
    monkeypatch.chdir("/")
    assert "there are no runs here yet" in refused(tmp_path / "runs" / "old" / "none")


@pytest.mark.parametrize(("name", "content", "told"), [
    ("my texts.jsonl", "", "a data file, not a run or a model; `miniformer train --train-path 'my texts.jsonl'` trains on it"),
    ("texts", '{"a": 1}\n{"a": 2}\n', "a data file, not a run or a model; `miniformer train --train-path texts`"),
    ("texts.csv", "a,b", "a data file, not a run or a model; data is read as JSON lines"),
    ("notes", "{}", "a file; expected a run folder"),
])
def test_a_file_in_place_of_a_run_is_told_by_what_it_is(tmp_path, monkeypatch, name, content, told):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert f"{name}: {told}" in refused(name)


def test_of_a_folder_of_runs_the_runs_are_told(folder, tmp_path):
    for name in ("second", "first"):
        shutil.copytree(folder, tmp_path / "runs" / name / "checkpoints" / "best_model")
    assert refused(tmp_path / "runs").endswith("runs: a folder of runs; expected one of them: first, second")


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "tokenizer.json"])
def test_a_missing_file_is_told(folder, name):
    if name == "tokenizer.json":
        write_model(folder, load_file(folder / "model.safetensors"), {"model": {}}, tokenizer="{}")
    (folder / name).unlink()
    told = refused(folder)
    assert f"there is no {name} in it" in told and "Errno" not in told


def test_a_model_in_a_folder_whose_name_is_not_utf8_is_loaded(folder, model, tmp_path):
    place = Path(shutil.copytree(folder, tmp_path / "of \udcff"))
    copy = type(model)(model.config)
    load_weights(copy, read_model(place))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), copy.parameters(), strict=True))


def test_a_link_to_itself_beside_a_missing_run_hides_no_other(folder, tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run, model or file of that name; "):
        read_model(Path("nowhere"))


def test_files_are_as_readable_as_any_new_file(folder, tmp_path):
    (tmp_path / "new").touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}


def fitted(folder, name, content):
    """Give a file of the folder other content, and a manifest that fits it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, name: digest(folder / name)}))


def header(change, content):
    """The content of a file of safetensors with another header."""
    size = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:8 + size])
    fields["embedding.weight"].update(change)
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size:]


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: b"no tensors", lambda content: b"PK\3\4" + bytes(100), lambda content: content[:-7],
    lambda content: content + b"more", lambda content: (2**63 - 1).to_bytes(8, "little") + b"{}",
    lambda content: (90_000_000).to_bytes(8, "little") + b"{}",
    lambda content: header({"shape": [2**40, 2**40]}, content), lambda content: header({"shape": [-1, 8]}, content),
    lambda content: header({"shape": [0, 2**62]}, content), lambda content: header({"dtype": "Q4"}, content),
    lambda content: header({"data_offsets": [2**62, 2**63]}, content),
])
def test_weights_that_are_none_are_one_line_though_the_manifest_fits(folder, damage):
    fitted(folder, "model.safetensors", damage((folder / "model.safetensors").read_bytes()))
    told = refused(folder)
    assert told.startswith(f"{folder / 'model.safetensors'}: cannot be read as safetensors: ") and "\n" not in told


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "int32"), (torch.float8_e4m3fn, "float8_e4m3fn"),
                                             (torch.complex64, "complex64"), (torch.bool, "bool")])
def test_weights_of_another_kind_of_number_are_refused(folder, dtype, name):
    rewrite(folder, lambda weights: weights.update({"stack.norm.weight": torch.ones(8).to(dtype)}))
    assert f"stack.norm.weight: {name} in the file, float32 in the model" in refused(folder)


@pytest.mark.parametrize(("field", "value", "expected"), [
    ("model", [1], "an object; found [1]"), ("model", None, "an object; found null"), ("assembly", 5, "a name; found 5"),
    ("assembly", {}, "a name; found {}"), ("extensions", [], "an object; found []"), ("providers", "x", 'an object; found "x"'),
    ("task", 5, "a name or an object; found 5"),
])
def test_a_field_of_another_type_is_told_with_its_file(folder, field, value, expected):
    config = json.loads((folder / "config.json").read_text())
    fitted(folder, "config.json", json.dumps({**config, field: value}).encode())
    assert refused(folder) == f"{folder / 'config.json'}: field {field!r}: expected {expected}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_file_that_is_no_json_object_is_told(folder, name, content):
    (fitted if name == "config.json" else (lambda *_: (folder / name).write_bytes(content)))(folder, name, content)
    assert refused(folder).startswith(f"{folder / name}: cannot be read as a saved model: ")


def test_a_name_too_long_for_a_folder_is_no_folder(tmp_path):
    assert "cannot be read: File name too long" in refused(tmp_path / ("n" * 300))


def test_weights_for_which_there_is_no_room_are_told_by_their_file(model, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"new/model\.safetensors: cannot be written: File too large; .* are free there"):
            model.save_pretrained(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "text"), [
    (lambda w: w.pop("stack.norm.weight"), "missing in the file: stack.norm.weight"),
    (lambda w: w.update(other=torch.zeros(1)), "unknown to the model: other"),
    (lambda w: w.update({"stack.norm.weight": torch.zeros(5)}), "stack.norm.weight: [5] in the file, [8] in the model"),
])
def test_weights_that_do_not_fit_are_named(folder, change, text):
    rewrite(folder, change)
    assert text in refused(folder)


def test_both_directions_are_told_at_once(folder):
    rewrite(folder, lambda w: w.update(other=w.pop("stack.norm.weight")))
    text = refused(folder)
    assert "missing in the file: stack.norm.weight" in text
    assert "unknown to the model: other" in text


def test_a_long_list_of_misfits_is_cut(folder):
    rewrite(folder, lambda w: w.update({f"other{i}": torch.zeros(1) for i in range(20)}))
    assert "and 12 more" in refused(folder)


def test_weights_that_do_not_fit_change_nothing(folder, model):
    rewrite(folder, lambda w: w.update({"embedding.weight": torch.zeros(11, 8), "other": torch.zeros(1)}))
    before = model.embedding.weight.clone()
    with pytest.raises(UserError):
        load_weights(model, read_model(folder))
    assert torch.equal(model.embedding.weight, before)


def test_of_names_that_share_a_tensor_the_first_is_saved(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert "embedding.weight" in names
    assert "head.out.weight" not in names


def test_different_tensors_are_all_kept():
    square = torch.randn(2, 2)
    weights = {"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.zeros(0), "d": torch.zeros(0), "e": square, "f": square.T}
    assert list(unshared(weights)) == list("abcdef")


def test_a_place_that_cannot_be_written_is_a_failed_run(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "model")


def test_a_component_of_a_package_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    built_in = discover(plugins="none")
    with monkeypatch.context() as patch, use_registry(Registry([*built_in, *discover([FAKES])])):
        patch.syspath_prepend(FAKES)
        Transformer(TransformerConfig(**SMALL, ffn="nested")).save_pretrained(tmp_path / "model")
        assert Transformer.from_pretrained(tmp_path / "model").config.ffn.name == "fine-parts:nested"
    with use_registry(Registry(built_in)), pytest.raises(UnknownComponent, match=r"missing: .*pip install fine-parts==1\.2"):
        Transformer.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_model_comes_back_as_the_float_type_that_it_was_saved_as(tmp_path, dtype, position):
    config = TransformerConfig(vocab_size=20, d_model=16, n_heads=2, n_layers=1, position=position)
    model = Transformer(config).to(dtype).eval()
    model.save_pretrained(tmp_path / "it")
    again = Transformer.from_pretrained(tmp_path / "it")
    assert {tensor.dtype for tensor in again.parameters()} == {dtype}
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids), model(ids))


def test_a_file_of_several_float_types_is_loaded_into_the_models_own(tmp_path):
    config = TransformerConfig(vocab_size=20, d_model=16, n_heads=2, n_layers=1)
    model = Transformer(config)
    model.stack.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "it")
    assert {tensor.dtype for tensor in Transformer.from_pretrained(tmp_path / "it").parameters()} == {torch.float32}


class Shifted:
    """Adds a parameter to the model, and notes it as it is once the weights are loaded."""

    @hookimpl
    def model_assembled(self, model):
        model.shift = torch.nn.Parameter(torch.zeros(2))

    @hookimpl
    def checkpoint_loaded(self, model):
        model.loaded_shift = model.shift.tolist()


def test_what_an_extension_adds_to_a_model_is_loaded_with_it(model, tmp_path):
    config = {"assembly": "transformer", "model": model.config.model_dump(mode="json"), "extensions": {"acme:shifted": {}}}
    with use_registry(Registry([*discover(), Entry("extension", "shifted", f"{__name__}:Shifted", "acme", "1")])):
        write_model(tmp_path / "m", {**model.state_dict(), "shift": torch.tensor([1.0, 2.0])}, config)
        again = Transformer.from_pretrained(tmp_path / "m")
    assert again.shift.tolist() == again.loaded_shift == [1.0, 2.0]
