"""A third party's wheel, built and installed with pip: listed, described, trained, saved, used, and missed when gone."""

import json
import os

import pytest

ENTRY_POINTS = """
[project.entry-points."miniformer.ffn"]
sine = "acme_parts:Sine"
[project.entry-points."miniformer.extension"]
shout = "acme_parts:Shout"
"""

MODULE = '''
import torch
from miniformer.kernel import FeedForward, hookimpl

class Sine(FeedForward):
    """down(sin(frequency * up x))."""

    def __init__(self, d_model: int, d_ff: int, *, frequency: float = 1.0):
        super().__init__(d_model, d_ff)
        self.up, self.down = torch.nn.Linear(d_model, d_ff), torch.nn.Linear(d_ff, d_model)
        self.frequency = frequency

    def forward(self, x, context):
        return self.down(torch.sin(self.frequency * self.up(x)))

class Shout:
    """Adds a parameter to the model, and says when it is saved and loaded."""

    def __init__(self, *, word: str = "SAVED"):
        self.word = word

    @hookimpl
    def model_assembled(self, model):
        model.shout = torch.nn.Parameter(torch.zeros(3))

    @hookimpl
    def checkpoint_saved(self, folder):
        print(self.word, folder.name)

    @hookimpl
    def checkpoint_loaded(self, model):
        print("LOADED", len(model.shout))
'''


@pytest.fixture(scope="module")
def site(installed, tmp_path_factory):
    """A folder with the installed wheel."""
    return installed(tmp_path_factory.mktemp("acme"), MODULE, ENTRY_POINTS)


@pytest.mark.slow
def test_a_wheel_is_a_part_of_miniformer_as_long_as_it_is_installed(cli, site, texts, tiny, tmp_path):
    assert any(line.split() == ["ffn", "sine", "acme-parts", "1.5", "available"]
               for line in cli("list-components", PYTHONPATH=site).stdout.splitlines())
    assert "frequency: number, default 1.0" in cli("describe", "sine", PYTHONPATH=site).stdout
    done = cli("train", "--train-path", str(texts), "--ffn", "sine", "--set", "ffn.frequency=2", "--with", "shout",
               "--set", "extensions.shout.word=KEPT", "--max-steps", "3", "--experiment-name", "mine", *tiny, PYTHONPATH=site)
    assert "KEPT best_model" in done.stdout
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert record["model"]["ffn"] == {"name": "acme-parts:sine", "frequency": 2.0}
    assert record["train"]["extensions"] == {"acme-parts:shout": {"word": "KEPT"}}
    assert record["providers"] == {"acme-parts": "1.5", "miniformer": record["miniformer"]}
    done = cli("generate", "runs/mine", "--prompt", "the", "--greedy", PYTHONPATH=site)
    assert done.stdout.startswith("the")
    assert "LOADED 3\n" in done.stderr  # the extension that shaped the model is there again
    gone = cli("generate", "runs/mine", "--prompt", "the", code=2).stderr
    assert "missing: this model was made with acme-parts, not installed here" in gone
    assert "(the model needs extension shout, ffn sine)" in gone
    assert "to get it: pip install acme-parts" in gone


@pytest.mark.slow
def test_an_installed_extension_that_is_not_named_does_nothing(cli, site, texts, tiny):
    done = cli("train", "--train-path", str(texts), "--max-steps", "1", *tiny, PYTHONPATH=site)
    assert "SAVED" not in done.stdout


def test_the_tests_run_on_the_package_that_is_installed():
    """Otherwise a file that is missing from the wheel would not be missed."""
    import miniformer
    if os.environ.get("CI"):
        assert "site-packages" in miniformer.__file__
