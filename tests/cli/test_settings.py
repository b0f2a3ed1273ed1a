"""Values that are set by path: what a text stands for, where it goes, and what is refused."""

import pytest

from miniformer.cli.shared.settings import apply, path_of, put
from miniformer.cli.train import merged
from miniformer.kernel import Entry, Registry, UserError, current_registry, discover, use_registry


def applied(path, text, fields=None):
    fields = {} if fields is None else fields
    apply(fields, path, text, "--set")
    return fields


@pytest.mark.parametrize(("text", "path"), [
    ("lr", ("lr",)), ("batch-size", ("batch_size",)), ("d_model", ("model_config", "d_model")),
    ("model_config.d_model", ("model_config", "d_model")), ("activation", ("model_config", "activation")),
    ("attention.window", ("model_config", "attention", "window")), ("scheduler.floor", ("scheduler", "floor")),
    ("extensions.My_Ext.rank", ("extensions", "my-ext", "rank")), ("model_config", ("model_config",))])
def test_a_short_path_means_a_field_of_the_run_or_of_its_model(text, path):
    assert path_of(text, "--set") == path


@pytest.mark.parametrize(("text", "error"), [
    ("atention.window", "--set: there is no 'atention'; did you mean 'attention'"),
    ("model_config.lr", "--set: there is no 'lr'"), ("model_config.", "--set: there is no ''")])
def test_a_path_to_nothing_is_refused(text, error):
    with pytest.raises(UserError, match=error):
        path_of(text, "--set")


ACTIVE = {"ema": {}, "acme-parts:shout": {}, "one:twin": {}, "two:twin": {}, "head": {}}


@pytest.mark.parametrize(("text", "path"), [
    ("ema.decay", ("extensions", "ema", "decay")), ("EMA.decay", ("extensions", "ema", "decay")),
    ("acme:ema.decay", ("extensions", "ema", "decay")), ("shout.word", ("extensions", "acme-parts:shout", "word")),
    ("acme_parts:shout.word", ("extensions", "acme-parts:shout", "word")), ("shout", ("extensions", "acme-parts:shout")),
    ("extensions.shout.word", ("extensions", "acme-parts:shout", "word")),
    ("one:twin.by", ("extensions", "one:twin", "by")), ("head.bias", ("model_config", "head", "bias")),
    ("extensions.head.bias", ("extensions", "head", "bias"))])
def test_an_active_extension_is_reached_by_its_name_where_no_field_has_it(text, path):
    assert path_of(text, "--set", ACTIVE) == path


@pytest.mark.parametrize("text", ["twin.by", "emu.decay", "other:shout.word", "model_config.ema.decay"])
def test_a_name_that_means_no_active_extension_or_two_is_refused(text):
    with pytest.raises(UserError, match="there is no "):
        path_of(text, "--set", ACTIVE)


def test_an_extension_that_is_installed_and_not_active_says_how_to_activate_it():
    entry = Entry("extension", "ema", "nowhere:EMA", "acme", "1.0")
    with use_registry(Registry([entry])), pytest.raises(
            UserError, match="there is no 'ema'; the extension ema is not active; to activate it: --with ema"):
        path_of("ema.decay", "--set")


def test_an_option_of_an_extension_goes_to_the_one_that_flags_and_files_activate(tmp_path):
    (tmp_path / "run.yaml").write_text("extensions: {'acme:ema': {start: 5}}\n")
    entries = [Entry("extension", name, "nowhere:Nothing", "acme", "1.0") for name in ("ema", "shout")]
    with use_registry(Registry([*discover(plugins="none"), *entries])):
        config = merged(str(tmp_path / "run.yaml"), None, {}, ("ema.decay=0.9", "shout.word=A"), extensions=("shout", "ema"))
    assert config.extensions == {"acme:ema": {"start": 5, "decay": 0.9}, "shout": {"word": "A"}}


@pytest.mark.parametrize(("path", "text", "value"), [
    (("experiment_name",), "5", "5"), (("experiment_name",), "none", None), (("tokenizer",), "null", None),
    (("tokenizer",), '"none"', "none"), (("lr",), "1e-4", "1e-4"), (("optimizer",), "none", "none")])
def test_the_text_of_a_field_is_left_to_the_spec_and_none_unsets(path, text, value):
    assert applied(path, text) == {path[0]: value}


@pytest.mark.parametrize(("text", "value"), [
    ("4", 4), ("true", True), ("rmsnorm", "rmsnorm"), ("none", "none"), ('["a"]', ["a"]), ("null", None), ("[a", "[a"),
    ("010", "010"), ("yes", "yes"), ("1_000", "1_000"), ("NaN", "NaN"), ("1e-3", 1e-3)])
def test_the_text_of_an_option_is_json_where_it_can_be(text, value):
    assert applied(("scheduler", "x"), text) == {"scheduler": {"name": "cosine", "x": value}}


def test_a_group_keeps_what_is_not_set_again():
    fields = applied(("model_config",), '{"d_model": 64}', {"model_config": {"n_layers": 3, "d_model": 8}})
    assert fields == {"model_config": {"n_layers": 3, "d_model": 64}}
    fields = {"extensions": {"lora": {"rank": 4}}}
    put(fields, ("extensions", "lora"), {}, "--with lora")
    assert fields == {"extensions": {"lora": {"rank": 4}}}


@pytest.mark.parametrize(("path", "text", "error"), [
    (("model_config",), "{", "--set: not JSON"), (("model_config",), "[1]", "--set: expected a JSON object; found \\[1\\]"),
    (("model_config",), '{"d_model": 1, "d_model": 2}', "--set: not JSON: field 'd_model' occurs twice"),
    (("model_config",), "[" * 100_000, "--set: not JSON: maximum recursion depth"),
    (("extensions", "lora"), "3", "--set: expected a JSON object; found 3"),
    (("lr", "x"), "3", "--set: in lr: expected a mapping of fields; found 'fast'")])
def test_what_is_no_mapping_where_one_is_expected_is_refused(path, text, error):
    with pytest.raises(UserError, match=error):
        applied(path, text, {"lr": "fast"})


def test_data_that_is_set_into_is_not_changed():
    file = {"model_config": {"attention": {"name": "mha", "window": 8}}}
    fields = {}
    put(fields, ("model_config",), file["model_config"], "run.yaml")
    apply(fields, ("model_config", "attention", "window"), "2", "--set")
    assert file == {"model_config": {"attention": {"name": "mha", "window": 8}}}


def test_every_component_that_is_named_is_looked_up_once(tmp_path, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text("task: classification\nscheduler: linear\nmodel_config: {norm: layernorm, layers: [{attention: mqa}]}\n")
    looked_up = []
    find = type(current_registry()).find

    def counting(registry, kind, name):
        looked_up.append((kind, name))
        return find(registry, kind, name)

    monkeypatch.setattr(type(current_registry()), "find", counting)
    merged(str(file), '{"ffn": "gelu"}', {"model_position": "learned"}, ("optimizer.fused=false", "head=lm"))
    assert sorted(looked_up) == sorted([
        ("task", "classification"), ("scheduler", "linear"), ("optimizer", "adamw"), ("norm", "layernorm"),
        ("attention", "mqa"), ("ffn", "gelu"), ("position", "learned"), ("head", "lm")])
