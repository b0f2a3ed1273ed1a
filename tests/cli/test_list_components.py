"""`miniformer list-components`, alone and beside fifty other distributions."""

import json
import resource

import pytest

BAD = {"raising": "raise RuntimeError('boom')", "exiting": "import sys; sys.exit(3)", "wrong": "class Thing: pass"}


def distribution(folder, name, entries, module=""):
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: miniformer>=0.1\n")
    (info / "entry_points.txt").write_text(f"[miniformer.ffn]\n{entries}\n")
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
    assert next(line for line in lines.splitlines() if " swiglu " in line).endswith("available")


def test_training_with_a_good_component_is_not_harmed(cli, fifty, texts, tiny):
    cli("train", "--train-path", str(texts), "--max-steps", "1", "--ffn", "swiglu", *tiny, PYTHONPATH=fifty)


def test_a_broken_component_is_told_when_it_is_asked_for(cli, fifty):
    done = cli("train", "--ffn", "raising", PYTHONPATH=fifty, code=2)
    assert done.stderr == "error: ffn 'raising' of raising 1.0 is broken: import: RuntimeError: boom\n"
