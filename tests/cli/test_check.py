"""`miniformer check`: one row a promise, an exit code, and names that are looked up before torch is imported."""

import json

import pytest

from .test_list_components import distribution

LEAKY = '''
import torch
from miniformer.kernel import FeedForward

class Thing(FeedForward):
    def forward(self, x, context):
        return x + x.roll(-1, dims=1)
'''


def test_a_component_that_keeps_its_promises_has_one_row_for_each(cli):
    lines = cli("check", "norm", "rmsnorm", "--examples", "3").stdout.splitlines()
    assert lines[0].startswith("norm rmsnorm (miniformer ")
    rows = [line.split() for line in lines if line.startswith("  ✓")]
    assert ["✓", "acts-on-each-vector", "held", "3", "examples"] in [row[:5] for row in rows]
    assert len(rows) >= 12
    assert any("compiles" in line and "only when asked to be thorough" in line for line in lines)


def test_one_that_does_not_ends_with_1_and_the_reason(cli, tmp_path):
    distribution(tmp_path / "site", "acme", "leaky = acme_module:Thing", LEAKY)
    done = cli("check", "leaky", "--examples", "4", code=1, PYTHONPATH=str(tmp_path / "site"))
    assert "✗ acts-on-each-position" in done.stdout
    assert "ffn acme:leaky breaks acts-on-each-position" in done.stdout
    assert "in training: what looks at other positions" in done.stdout
    assert "Traceback" not in done.stderr


def test_json_is_one_report_or_a_list_of_them(cli):
    report = json.loads(cli("check", "norm", "rmsnorm", "--examples", "2", "--json").stdout)
    assert report["ok"] is True
    assert {row["outcome"] for row in report["results"]} <= {"held", "skipped"}
    reports = json.loads(cli("check", "norm", "--examples", "1", "--json").stdout)
    assert [one["component"] for one in reports] == ["layernorm", "rmsnorm"]


def test_options_that_are_set_are_checked_alone(cli):
    assert "window" not in cli("check", "attention", "mha", "--set", "window=3", "--examples", "1").stdout
    assert "window" in cli("check", "attention", "mha", "--set", "window=0", code=2).stderr
    assert "expected OPTION=VALUE" in cli("check", "attention", "mha", "--set", "window", code=2).stderr


@pytest.mark.parametrize(("args", "said"), [
    (["rop-mha"], "did you mean 'rope-mha'"),
    (["linear"], "say attention linear or scheduler linear"),
    (["attenton", "mha"], "did you mean 'attention'"),
    (["attention", "rop-mha"], "did you mean: rope-mha"),
    (["a", "b", "c"], "expected [KIND] NAME"),
    ([], "which component?"),
    (["norm", "rmsnorm", "--only", "row-stands-alone"], "of norm; did you mean 'rows-stand-alone'"),
    (["norm", "rmsnorm", "--only", "no-look-ahead"], "it is one of attention"),
    (["no_such_module:Thing"], "no component named 'no_such_module:Thing'"),
    (["json:Thing"], "module json has no class 'Thing'"),
    (["json:JSONDecoder"], "implements no interface"),
    (["--list", "nrom"], "no component named 'nrom'"),
    (["masked-lm", "--data", "missing.jsonl"], "missing.jsonl"),
    (["masked-lm", "--seed", str(2**64)], "is not in the range"),
])
def test_a_mistake_is_one_clear_error(cli, args, said):
    text = cli("check", *args, code=2).stderr
    assert said in text
    assert "Traceback" not in text


def test_a_typo_and_a_list_cost_no_torch(fresh_python):
    code = """
import sys
from miniformer.cli import main
for words in (["attention", "rop-mha"], ["attention", "mha", "--only", "look-ahead"], ["--list", "norm"]):
    try:
        main(["check", *words])
    except SystemExit as end:
        print(end.code, "torch" in sys.modules, "hypothesis" in sys.modules)
"""
    lines = fresh_python(code).splitlines()
    assert [line for line in lines if line.endswith(" False False")] == ["2 False False", "2 False False", "0 False False"]
    assert any(line.split()[:2] == ["acts-on-each-vector", "Each"] for line in lines)


def test_the_list_is_json_data_for_all_kinds_or_that_of_a_component(cli):
    rows = json.loads(cli("check", "--list", "--json").stdout)
    assert {row["kind"] for row in rows} > {"attention", "task", "extension"}
    of_one = json.loads(cli("check", "--list", "rmsnorm", "--json").stdout)
    assert of_one == [row for row in rows if row["kind"] == "norm"]
    assert next(row for row in of_one if row["property"] == "compiles")["thorough"] is True


def test_only_the_promises_that_are_asked_for_are_checked(cli):
    done = cli("check", "norm", "--only", "keeps_precision", "--only", "is-the-same-twice-in-eval", "--examples", "1", "--json")
    for report in json.loads(done.stdout):
        assert [row["property"] for row in report["results"]] == ["is-the-same-twice-in-eval", "keeps-precision"]


def test_a_class_that_is_not_registered_is_checked_by_its_module(cli, tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(LEAKY)
    monkeypatch.syspath_prepend(tmp_path)
    found = cli("check", "my_parts:Thing", "--only", "acts-on-each-position", "--no-shrink", "--examples", "3", code=1).stdout
    assert found.startswith("ffn Thing (my_parts)\n")
    assert "ffn Thing breaks acts-on-each-position" in found
    assert cli("check", "ffn", "my_parts:Thing", "--only", "builds-from-its-options", "--examples", "1").stdout
    assert "subclasses" in cli("check", "norm", "my_parts:Thing", code=2).stderr
