"""`miniformer list-components`, alone and beside fifty other distributions."""

import json
import resource

import pytest
from depth import thorough

from miniformer.cli.shared.tables import table

BAD = {"raising": "raise RuntimeError('boom')", "exiting": "import sys; sys.exit(3)", "wrong": "class Thing: pass"}


def distribution(folder, name, entries, module="", group="miniformer.ffn"):
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: miniformer>=0.1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    if module:
        (folder / f"{name.replace('-', '_')}_module.py").write_text(module)


@pytest.fixture
def fifty(tmp_path):
    """Fifty distributions: one raises at import, one exits, one is no feed-forward, two have one name."""
    folder = tmp_path / "fifty"
    for name, module in BAD.items():
        distribution(folder, name, f"{name} = {name}_module:Thing", module)
    for name in ("twin-a", "twin-b"):
        distribution(folder, name, "twin = twins:Thing")
    for i in range(45):
        distribution(folder, f"fake-{i}", f"fake-{i} = fake_{i}:Thing")
    return str(folder)


def test_it_tells_kind_name_provider_and_state(cli):
    rows = [line.split() for line in cli("list-components").stdout.splitlines()]
    assert rows[0] == ["kind", "name", "provider", "state"]
    assert ["attention", "rope-mha", "miniformer", "0.1.0", "available"] in rows
    assert {row[0] for row in rows[1:]} == {"attention", "position", "ffn", "norm", "head", "assembly", "task", "optimizer",
                                            "scheduler"}


def test_a_kind_narrows_it(cli):
    assert {line.split()[0] for line in cli("list-components", "norm").stdout.splitlines()[1:]} == {"norm"}


def test_json_has_the_same_facts(cli):
    rows = json.loads(cli("list-components", "norm", "--json").stdout)
    assert rows[0] == {"kind": "norm", "name": "layernorm", "distribution": "miniformer", "version": "0.1.0",
                       "state": "available", "reason": ""}


def test_fifty_distributions_are_listed_without_importing_any_of_them(cli, fifty):
    done = cli("list-components", PYTHONPATH=fifty, PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout.count("fake-") == 2 * 45
    assert done.stdout.count("ambiguous: say twin-") == 2
    assert not any(name in done.stderr for name in ("_module", "fake_", "twins", " torch\n"))


@thorough
def test_fifty_distributions_take_under_300_ms_of_cpu(cli, fifty):
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        cli("list-components", PYTHONPATH=fifty)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3


def test_load_marks_what_is_broken_and_why(cli, fifty):
    lines = cli("list-components", "ffn", "--load", PYTHONPATH=fifty).stdout
    assert "broken: import: RuntimeError: boom" in lines
    assert "broken: import: SystemExit: 3" in lines
    assert "broken: conformance: a component of kind ffn subclasses miniformer.kernel.interfaces.FeedForward" in lines
    assert "broken: import: ModuleNotFoundError: No module named 'fake_7'" in lines
    assert next(line for line in lines.splitlines() if " swiglu " in line).endswith(
        "available: down(silu(gate x) * up x), the gated feed-forward of Llama (Shazeer 2020, arXiv:2002.05202).")


def test_load_tells_the_whole_reason_and_imports_no_other_kind(cli, tmp_path):
    distribution(tmp_path / "site", "renamed", "renamed = renamed_module:Renamed", "from miniformer.kernel import FeedForward\n"
                 "class Renamed(FeedForward):\n    def __init__(self, long_name, another_long_name, *, option=1): pass\n"
                 "    def forward(self, x, context): return x\n")
    distribution(tmp_path / "site", "other", "other = other_module:X", "print('imported')", group="miniformer.norm")
    done = cli("list-components", "ffn", "--load", PYTHONPATH=str(tmp_path / "site"))
    assert "; rename long_name to d_model, another_long_name to d_ff\n" in done.stdout
    assert "imported" not in done.stdout
    assert json.loads(cli("list-components", "norm", "--load", "--json").stdout)[0]["summary"].startswith("Zero mean")


def test_what_is_declared_amiss_is_a_row(cli, tmp_path):
    distribution(tmp_path, "acme", "f = acme_module:F", group="miniformer.ffnn")
    for name in ("acme-one", "acme-two"):
        distribution(tmp_path, name, "hello = click:command\ntrain = click:command", group="miniformer.command")
    text = cli("list-components", PYTHONPATH=str(tmp_path)).stdout
    assert "broken: metadata: there is no kind 'ffnn'; did you mean 'ffn'?" in text
    assert text.count("broken: metadata: 'train' is a command of miniformer; choose another name") == 2
    assert text.count("broken: metadata: 'hello' is a command of acme-") == 1
    assert "4 of " in text


def test_a_long_reason_goes_on_below_itself_on_a_terminal():
    rows = [("ffn", "a", "broken: rename dim to d_model"), ("attention", "b", "available")]
    assert list(table(rows, 38, wrapped=2)) == ["ffn        a  broken: rename dim to", "              d_model",
                                                "attention  b  available"]
    assert next(table(rows, None)).endswith("a  broken: rename dim to d_model")


def test_training_with_a_good_component_is_not_harmed(cli, fifty, texts, tiny):
    cli("train", "--train-path", str(texts), "--max-steps", "1", "--ffn", "swiglu", *tiny, PYTHONPATH=fifty)


def test_a_broken_component_is_told_when_it_is_asked_for(cli, fifty):
    done = cli("train", "--ffn", "raising", PYTHONPATH=fifty, code=2)
    assert done.stderr == "error: ffn 'raising' of raising 1.0 is broken: import: RuntimeError: boom\n"
