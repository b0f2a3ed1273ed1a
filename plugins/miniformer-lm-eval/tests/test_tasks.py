"""Tasks of the harness on a run folder: from Python, by the command, and by the harness's own command line."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from miniformer_lm_eval import MiniformerLM
from miniformer_lm_eval.commands import lm_eval

import miniformer
from miniformer.kernel.errors import UserError

README = Path(__file__).parents[1] / "README.md"
QUESTIONS = [("the cat number", [" 1", " sat", " birds and mats"], 0), ("the cat number 3 sat on the", [" mat", " saw"], 0),
             ("the cat number 8 sat on", [" saw", " the"], 1), ("and saw", [" the cat", " 9 birds."], 1)]
PROSE = ["the cat number 7 sat on the mat.", "the cat saw 9 birds. " * 7]
TASKS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""


def write_records(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def place(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README thinks it: runs/my-language-modeling-1, my-tasks/mine.yaml and its questions; and more tasks."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "runs").mkdir()
    (folder / "runs" / "my-language-modeling-1").symlink_to(run)
    write_records(folder / "questions.jsonl", [{"question": question, "choices": choices, "answer": answer}
                                               for question, choices, answer in QUESTIONS])
    write_records(folder / "prose.jsonl", [{"text": text} for text in PROSE])
    text = miniformer.load(run).generate("the cat number 3", max_new_tokens=9, temperature=0).split(" and")[0]
    assert text
    write_records(folder / "answers.jsonl", [{"prompt": "the cat number 3", "answer": text}, {"prompt": "the", "answer": "?"}])
    tasks = folder / "my-tasks"
    tasks.mkdir()
    [mine] = code("yaml")
    (tasks / "mine.yaml").write_text(mine, encoding="utf-8")
    (tasks / "prose.yaml").write_text(TASKS.format(name="prose", data=folder / "prose.jsonl") + """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""", encoding="utf-8")
    (tasks / "answers.yaml").write_text(TASKS.format(name="answers", data=folder / "answers.jsonl") + """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [" and"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
""", encoding="utf-8")
    return folder


def accuracy(lm: MiniformerLM) -> float:
    """Of the questions, how many have the right choice as the likeliest."""
    right = 0
    for question, choices, answer in QUESTIONS:
        asked = [Instance("loglikelihood", {}, (question, " " + choice), i) for i, choice in enumerate(choices)]
        scores = [logprob for logprob, _ in lm.loglikelihood(asked)]
        right += scores.index(max(scores)) == answer
    return right / len(QUESTIONS)


@pytest.fixture(scope="module")
def manager(place: Path) -> TaskManager:
    return TaskManager(include_path=str(place / "my-tasks"), include_defaults=False)  # to read all takes seconds


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place / "runs" / "my-language-modeling-1"


def test_tasks_of_every_kind(here: Path, manager: TaskManager) -> None:
    lm = MiniformerLM(here, batch_size=4)
    found = simple_evaluate(model=lm, tasks=["mine", "prose", "answers"], task_manager=manager, bootstrap_iters=0)
    results = found["results"]
    assert 0 < results["mine"]["acc,none"] == accuracy(lm)
    nats = -sum(lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(PROSE)]))
    words, size = sum(len(re.split(r"\s+", text)) for text in PROSE), sum(map(len, PROSE))
    assert results["prose"]["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert results["prose"]["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2), rel=1e-4)
    assert results["answers"]["exact_match,none"] == 0.5
    assert found["samples"]["answers"][0]["exact_match"] == 1


def test_the_model_has_a_name_in_the_harness(here: Path, manager: TaskManager) -> None:
    found = simple_evaluate(model="miniformer", model_args=f"run={here}", batch_size=2, device="cpu", tasks=["mine"],
                            task_manager=manager, bootstrap_iters=0)
    assert found["results"]["mine"]["acc,none"] == accuracy(MiniformerLM(here))


@pytest.mark.usefixtures("own_tasks_only")
def test_the_command(here: Path) -> None:
    done = CliRunner().invoke(lm_eval, [str(here), "--include-path", "my-tasks", "--tasks", "mine,answers", "--tasks", "pro*e",
                                        "--limit", "2", "--num-fewshot", "0", "--batch-size", "2", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["results"]) == {"mine", "answers", "prose"} and found["results"]["answers"]["exact_match,none"] == 0.5
    assert found["n-samples"]["mine"] == {"original": len(QUESTIONS), "effective": 2}


@pytest.mark.usefixtures("own_tasks_only")
def test_what_the_command_refuses(here: Path, tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        error = CliRunner().invoke(lm_eval, [str(here), *options]).exception
        assert isinstance(error, UserError), error
        return str(error)

    assert "did you mean 'mine'" in refused("--tasks", "mien", "--include-path", "my-tasks")
    assert "expected the name of a task" in refused("--tasks", ",")
    (tmp_path / "empty.yaml").write_text(TASKS.format(name="empty", data="nowhere.jsonl") + "output_type: multiple_choice\n")
    assert "nowhere.jsonl" in refused("--tasks", "empty", "--include-path", str(tmp_path))
    nowhere = CliRunner().invoke(lm_eval, ["nowhere", "--tasks", "mine"])
    assert "there is no run, model or file of that name" in str(nowhere.exception)


def test_help_costs_nothing() -> None:
    """Without torch, and without the harness."""
    assert isinstance(lm_eval, click.Command)
    check = ("import sys; from miniformer_lm_eval.commands import lm_eval; import miniformer_lm_eval; "
             "assert not {'torch', 'datasets'} & set(sys.modules) and 'lm_eval' not in sys.modules")
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_the_python_of_the_readme_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = code("python")
    exec(compile(block, str(README), "exec"), {})
    assert "acc_norm" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["miniformer lm-eval runs/my-language-modeling-1 --tasks lamb",
                                  "python -m miniformer_lm_eval run"])
def test_the_commands_of_the_readme_run(here: Path, line: str) -> None:
    [said] = [each for each in README.read_text(encoding="utf-8").splitlines() if each.startswith(line)]
    program, *words = said.split()
    words[words.index("lambada_openai")] = "mine"  # whose data is here
    words += ["--include_path" if program == "python" else "--include-path", "my-tasks"]
    started = [sys.executable, *words] if program == "python" else [sys.executable, "-m", program, *words]
    done = subprocess.run(started, text=True, env=dict(os.environ), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    row = re.search(r"\|mine.*\|acc *\|.*\| *([\d.]+)\|± *\|", done.stdout)
    assert row and float(row[1]) == pytest.approx(accuracy(MiniformerLM(here)), abs=1e-4)
