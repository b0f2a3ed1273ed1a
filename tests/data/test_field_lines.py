"""Errors about fields of a file: which line they name."""

import pytest

from miniformer.cli.train import merged
from miniformer.kernel import UserError
from miniformer.train.spec_file import model_of, read_spec


def refused(tmp_path, text, **flags):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        merged(str(path), None, flags)
    return str(caught.value).replace(f"{path}", "run.yaml")


@pytest.mark.parametrize(("text", "told"), [
    ("seed: 1\nlr: -1", "run.yaml:2: lr: input should be greater than 0; found -1"),
    ("lr: 1:30", "run.yaml:1: lr: input should be a valid number, unable to parse string as a number; found '1:30'"),
    ("model_config:\n  d_model: 8\n  n_layers: yes", "run.yaml:3: model_config.n_layers: input should be a valid integer, "
     "unable to parse string as an integer; found 'yes'"),
    ("model_config:\n  n_layers: true",
     "run.yaml:2: model_config.n_layers: expected a number, not true or false; found True"),
    ("lr: 1\nmodel_config:\n  attention:", "run.yaml:3: attention: left blank; expected a name, such as mha, or no such field"),
    ("model_config: {head: null}", "run.yaml:1: head: left blank; expected a name, such as lm, or no such field"),
    ("model_config:\n  d_ff: null", "run.yaml:2: d_ff: left blank; expected a value, or no such field"),
    ("\nscheduler:", "run.yaml:2: scheduler: left blank; expected a name, such as cosine, or no such field"),
    ("batch_size: 0\nlr: -1", "run.yaml:1: batch_size: input should be greater than or equal to 1; found 0\n"
     "run.yaml:2: lr: input should be greater than 0; found -1"),
    ("model_config:\n  layers:\n    - {attention: mha}\n    - {repeat: 0}",
     "run.yaml:4: layers.1.repeat: expected a whole number from 1 on; found 0"),
])
def test_an_error_names_the_line_of_its_field(tmp_path, text, told):
    assert refused(tmp_path, text) == told


def test_a_name_that_nothing_has_is_told_with_the_line_where_it_stands(tmp_path):
    assert refused(tmp_path, "lr: 1\ntask: classify").startswith("run.yaml:2: there is no task named 'classify'\n  did you")


def test_a_file_without_known_lines_is_named(tmp_path):
    assert refused(tmp_path, '{\n\t"lr": -1\n}').startswith("run.yaml: lr: input should be")


def test_the_file_of_a_model_is_named_with_the_line(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("d_model: 16\nattention: {name: mha, windw: 3}\n")
    with pytest.raises(UserError, match=r"model\.yaml:2: attention mha\.windw: there is no 'windw' here; did you mean"):
        model_of(read_spec(path))


@pytest.mark.parametrize(("text", "field", "value"), [
    ("seed: 010", "seed", 10), ("seed: 1_000", "seed", 1000), ("compile: yes", "compile", True), ("cache: off", "cache", False),
    ("experiment_name: no", "experiment_name", "no"), ("experiment_name: 010", "experiment_name", "010"),
    ("experiment_name: 2024-01-01", "experiment_name", "2024-01-01"), ("max_steps:", "max_steps", None)])
def test_the_value_that_is_seen_is_the_value_that_is_used(tmp_path, text, field, value):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert getattr(merged(str(path), None, {}), field) == value
    if value is not None:
        assert getattr(merged(None, None, {}, (f"{field}={text.partition(' ')[2]}",)), field) == value
