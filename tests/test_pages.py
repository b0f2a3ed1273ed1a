"""Pages beside the samples: a reader's own data becomes records, the tour names files that exist, decisions have their form."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from miniformer.data.prepare import prepare_data
from miniformer.kernel import current_registry, resolve

ROOT = Path(__file__).parents[1]
YOUR_DATA = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
NOTES = [path for path in DECISIONS if path.name != "README.md"]
COMMANDS = [line for line in YOUR_DATA.splitlines() if line.startswith("miniformer ")]
TRAINING = [shlex.split(line) for line in COMMANDS if line.startswith("miniformer train")]


def option(command, name, default=None):
    return command[command.index(name) + 1] if name in command else default


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A folder in which the page's blocks have been run."""
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    for block in re.findall(r"^```python\n(.*?)^```", YOUR_DATA, flags=re.S | re.M):
        exec(compile(block, "docs/your-data.md", "exec", dont_inherit=True), vars(page))
    return tmp_path


def test_what_the_page_converts_are_records_of_the_task_that_it_trains(converted):
    assert len(TRAINING) == 3
    for command in TRAINING:
        task, path = option(command, "--task", "language-modeling"), option(command, "--train-path")
        data = prepare_data(resolve("task", task), path, vocab_size=300)
        assert len(data.train.records) + len(data.val.records) >= 17, path


@pytest.mark.slow
def test_the_commands_of_the_page_work_in_their_order(converted, cli):
    small = "--d-model 16 --n-heads 2 --n-layers 1 --max-seq-len 32 --batch-size 4 --max-steps 2"
    for command in COMMANDS:
        printed = cli(*shlex.split(f"{command} {small if command.split()[1] == 'train' else ''}")[1:]).stdout
        if "classification" in command and "train" in command:
            shown = re.search(r"^```\nreading.*?^```", YOUR_DATA, flags=re.S | re.M).group(0)
            for part in ("reading reviews.jsonl", "held out: ", "; vocabulary: ", "parameters, precision", "best model of step",
                         "this model", "always ", "run folder: ", "next: miniformer predict"):
                assert part in shown
                assert part in printed


def test_every_task_has_a_row_or_becomes_one_that_has():
    rows = set(re.findall(r"^\| .* \| .* \| `([\w-]+)` \| .* \|$", YOUR_DATA, flags=re.M))
    tasks = {entry.name for entry in current_registry().entries("task") if entry.distribution == "miniformer"}
    assert rows == tasks - {"prefix-lm"}


def test_the_fields_of_the_rows_are_those_of_the_tasks():
    for name, fields in re.findall(r"^\| .* \| .* \| `([\w-]+)` \| (.*) \|$", YOUR_DATA, flags=re.M):
        record = current_registry().load("task", name).Record
        assert set(re.findall(r"`(\w+)`", fields)) <= set(record.model_fields), name


def test_the_tour_has_five_walks_through_files_that_exist():
    tour = CONTRIBUTING.partition("## A tour in five walks")[2].partition("\n## ")[0]
    walks = re.split(r"^### ", tour, flags=re.M)[1:]
    assert len(walks) == 5
    for walk in walks:
        files = re.findall(r"`((?:miniformer|tests|docs)/[\w/.-]+\.\w+)`", walk)
        assert len(files) >= 5, walk.partition("\n")[0]
        assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.stem)
def test_a_decision_is_dated_and_says_context_decision_reason_and_cost(path):
    assert re.match(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]+$", path.stem)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.M) == ["Context", "Decision", "Why", "What it costs"]
    assert len(text) < 2500, "one thought a note"


def test_the_list_of_decisions_has_each_once_with_its_title():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.*)\]\((.*)\)$", index, flags=re.M)
    assert listed == [(path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "), path.name) for path in NOTES]


def test_decisions_and_the_guide_for_contributors_link_to_what_is_there():
    for page in [*DECISIONS, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
