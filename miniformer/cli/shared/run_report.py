"""What `miniformer train` prints at its end."""

from __future__ import annotations

import shlex
from typing import Any

from rich.table import Table
from rich.text import Text

from miniformer.data.stdlib import NAME
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.train.trainer import RunResult

SAMPLE = 60
"""Tokens that a run shows at its end, at most."""


def report(console: Any, result: RunResult) -> None:
    """What the run reached, beside what is trivial; a sample; where it is; what to type next."""
    held, test = ({name.removeprefix(prefix): value for name, value in result.metrics.items() if name.startswith(prefix)}
                  for prefix in ("val_", "test_"))
    rows = [["", *(name.replace("_", " ") for name in held)], ["this model", *(f"{value:.4g}" for value in held.values())]]
    if test:
        rows.append(["on the test file", *(f"{value:.4g}" for value in test.values())])
    for name, values in result.baselines.items():
        rows.append([name, *(f"{values[metric]:.4g}" if metric in values else "" for metric in held)])
    table = Table(title=f"held-out records ({len(result.data.val.records)}), best model of step "
                        f"{result.metrics['step']:.0f}", title_justify="left")
    for place, column in enumerate(zip(*rows, strict=True)):
        words = [word for cell in column for word in cell.split()]  # on a narrow terminal none is cut, and no number
        table.add_column(column[0], justify="right" if place else "left", min_width=max(map(len, words)))
    for place, row in enumerate(rows[1:]):
        table.add_row(*map(Text, row), style="" if place else "bold")
    console.print()
    console.print(table)
    run = shlex.quote(str(result.folder))
    if result.module.model.generates:
        prompt, text = _sample(result)
        console.print("\nsample:", highlight=False)
        console.print(text, markup=False, highlight=False)
        following = f"miniformer generate {run} --prompt {shlex.quote(prompt)}"
    else:
        following = f"miniformer predict {run} --input FILE.jsonl"
    console.print(f"\nrun folder: {result.folder}", highlight=False, markup=False)
    console.print(f"next: {following}", highlight=False, markup=False)


def _sample(result: RunResult) -> tuple[str, str]:
    """A prompt to try, and what the model makes of one: it goes on from it, or answers a held-out source."""
    tokenizer, model = result.data.tokenizer, result.module.model
    if model.has_source:
        source = result.data.val.examples[0].source
        assert source is not None
        asked = " ".join(tokenizer.decode(source).split())[-200:]
        engine = Engine(model, tokenizer, encode=lambda _: list(source))
        (answer,) = engine.generate([asked], Sampling(0.0), max_new_tokens=SAMPLE)
        return asked, f"{asked}\n-> {answer.text}"
    held_out = next(result.data.task.texts(result.data.val.records[0]))
    prompt = "def " if result.module.config.train_path == NAME else " ".join(held_out.split()[:2])
    (answer,) = Engine(model, tokenizer).generate([prompt], Sampling(0.7, top_p=0.9), max_new_tokens=SAMPLE,
                                                  seed=result.module.config.seed, truncate=True)
    return prompt, prompt + answer.text
