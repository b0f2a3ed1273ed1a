"""The package from outside: its imports, the parts that it registers, and its README."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import miniformer_hf
import pytest
from miniformer_hf.convert import ARCHITECTURES

from miniformer.kernel import Registry, discover

README = Path(__file__).parents[1] / "README.md"
PUBLIC = {"miniformer.kernel", "miniformer.kernel.errors", "miniformer.config.model_config", "miniformer.model.assembly",
          "miniformer.model.assemblies", "miniformer.model.transformer", "miniformer.model.seq2seq_transformer",
          "miniformer.checkpoint.store", "miniformer.checkpoint.atomic", "miniformer.checkpoint.can_make",
          "miniformer.checkpoint.file_names", "miniformer.kernel.text_file", "miniformer.data.tokenizer"}
"""The modules that docs/plugins.md opens to plugins that read and write whole models."""
PARTS = [("position", "bert-embeddings"), ("head", "bert-mlm"), ("head", "bert-pooled")]


def test_it_imports_only_what_a_third_party_can() -> None:
    allowed = {"torch", "safetensors", "pydantic", "click", "lazy_loader", *sys.stdlib_module_names}
    for file in Path(miniformer_hf.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module in PUBLIC or node.module.split(".")[0] in allowed


def test_what_it_may_import_is_documented() -> None:
    page = README.parents[2] / "docs" / "plugins.md"
    named = set(re.findall(r"`(miniformer[\w.]+)`", page.read_text(encoding="utf-8")))
    assert named >= PUBLIC - {"miniformer.kernel.errors"}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_its_parts_are_found(kind: str, name: str) -> None:
    assert Registry(discover()).find(kind, name).saved == f"miniformer-hf:{name}"


def test_neither_help_nor_transformers_costs_anything() -> None:
    """The commands say what they do without torch, and convert without transformers."""
    code = ("import sys; from miniformer_hf.commands import import_hf; assert 'torch' not in sys.modules; "
            "import miniformer_hf; miniformer_hf.import_model; assert 'transformers' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_readme_names_every_architecture() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), flags=re.M)) == set(ARCHITECTURES)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    process = subprocess.run([sys.executable, "-c", code + "\nassert logits.shape == (2, 10, 100)"], cwd=tmp_path, text=True,
                             env=dict(os.environ), capture_output=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "exported" / "config.json").is_file()
