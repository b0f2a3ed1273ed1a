"""The package as others see it: what it imports, and what docs/plugins.md says of that."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import miniformer_lm_eval

PUBLIC = {"miniformer.kernel", "miniformer.kernel.errors", "miniformer.checkpoint.store", "miniformer.inference.engine",
          "miniformer.inference.pipeline", "miniformer.decoding.beam_search", "miniformer.decoding.sampling"}
OTHERS = {"torch", "click", "tqdm", "datasets", "lm_eval", "lazy_loader"}


def test_it_imports_only_what_a_third_party_can() -> None:
    for file in Path(miniformer_lm_eval.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= OTHERS | sys.stdlib_module_names
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                assert node.module in PUBLIC or node.module.split(".")[0] in OTHERS | sys.stdlib_module_names


def test_what_it_may_import_is_documented() -> None:
    page = Path(__file__).parents[3] / "docs" / "plugins.md"
    named = set(re.findall(r"`(miniformer[\w.]+)`", page.read_text(encoding="utf-8")))
    assert named >= PUBLIC - {"miniformer.kernel.errors"}
