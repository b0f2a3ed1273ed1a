"""What README and docs show is run: Python blocks as they are, commands with a few steps instead of minutes."""

import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from depth import is_thorough

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = "--d-model 16 --n-heads 2 --n-layers 1 --max-seq-len 32 --batch-size 4"


def blocks(language):
    return [pytest.param(text, id=f"{page.name}:{page.read_text()[:found.start()].count(chr(10)) + 1}") for page in PAGES
            for found in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)
            for text in [found.group(1)]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of."""
    rows = [json.dumps({"text": f"once upon a time there were {n} bears"}) for n in range(30)]
    (tmp_path / "my.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"input": f"{n} bears", "label": ("few", "many")[n > 15]}) for n in range(30)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"source": f"{n} bears", "target": f"{n}"}) for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick_checks(monkeypatch, request):
    """Check promises on few examples, outside the thorough run, but for the page that shows how many there are."""
    if not is_thorough() and "contracts.md" not in request.node.name:
        monkeypatch.setattr("miniformer.contracts.kit.check.FAST", 3)


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(folder, page, monkeypatch):
    """The blocks of a page, one after the other, as a reader would type them."""
    module = types.ModuleType("block")
    monkeypatch.setitem(sys.modules, "block", module)  # where a class that is pickled is looked for
    for block in blocks("python"):
        if block.id.startswith(f"{page.name}:"):
            exec(compile(block.values[0], block.id, "exec", dont_inherit=True), vars(module))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_config_file(folder, text):
    from miniformer.cli.train import merged
    from miniformer.config.model_config import TransformerConfig
    (folder / "run.yaml").write_text(text)
    config = merged("run.yaml", None, {})
    assert TransformerConfig.model_validate(config.architecture).n_layers == 4


@pytest.mark.slow
@pytest.mark.usefixtures("quick_checks")
def test_the_commands_of_the_readme_work_in_their_order(cli, folder):
    commands = [line.split("  #")[0] for block in blocks("bash") for line in block.values[0].splitlines()
                if line.startswith("miniformer ")]
    assert len(commands) >= 6
    for command in commands:
        extra = f" --max-steps 2 {'' if '--d-model' in command else TINY}" if command.split()[1] == "train" else ""
        extra += " --seconds 0.05 --rounds 1" if command.split()[1] == "bench" else ""
        args = shlex.split(command + extra)[1:]
        done = cli(*args)
        assert done.stdout or done.stderr


def test_the_pages_link_to_what_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_components_is_what_is_registered():
    from miniformer.kernel import Registry, discover
    readme = (ROOT / "README.md").read_text()
    rows = {row[0]: set(re.findall(r"`([\w-]+)`", row[1])) for row in re.findall(r"^\| (\w+) \| (.*) \|$", readme, flags=re.M)}
    for entry in Registry(discover()).entries():
        if entry.distribution == "miniformer":
            assert entry.name in rows[entry.kind]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(folder, script):
    done = subprocess.run([sys.executable, script, "my.jsonl", "--steps", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out loss") >= 2
