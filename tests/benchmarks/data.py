"""How fast a run's input is: tokenising and packing beside what the libraries do alone, the cache, padding, collation.

    python -m tests.benchmarks.data [MEGABYTES [ROUNDS]]

Texts are the standard library's own sources, cut and varied. All contestants have a turn in each round, every other round goes
backwards, and ratios are of turns in one round, so that what slows the machine down slows both.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from miniformer.data import stdlib
from miniformer.data.cache import SETTLED, Cache, Settings
from miniformer.data.packing import PackedRows
from miniformer.data.prepare import prepare_data
from miniformer.data.sampler import EpochBatches
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import resolve

from .machine import machine

ROW, BATCH = 256, 8


def measure(megabytes: float = 50, rounds: int = 3) -> dict[str, Any]:
    """Median MB/s of JSONL, of each contestant and beside `encode_batch` in the same round; and what else there is to tell."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        texts = write_texts(path, megabytes)
        size = path.stat().st_size / 1e6
        tokenizer = Tokenizer.train((text for _, text in stdlib.sources()), 4096)
        task = resolve("task", "language-modeling")
        assert tokenizer.fast is not None
        encoding = tokenizer.fast.encoding

        def ours() -> None:
            rows = PackedRows(prepare_data(task, str(path), tokenizer=tokenizer).train.examples, ROW)
            assert len(rows[0].tokens) == ROW

        contestants: dict[str, Callable[[], Any]] = {
            "miniformer, file to packed rows": ours,
            "tokenizers encode_batch, texts to encodings": lambda: tokenizer.backend.encode_batch(texts),
            "tiktoken, texts to ids": lambda: list(map(encoding.encode_ordinary, texts))}
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds):
            for name in list(contestants)[::(-1) ** turn]:
                started = time.perf_counter()
                contestants[name]()
                speeds[name].append(size / (time.perf_counter() - started))
        raw = speeds["tokenizers encode_batch, texts to encodings"]
        found: dict[str, Any] = {f"{name}, MB/s": statistics.median(found) for name, found in speeds.items()}
        found |= {f"{name}, ratio to encode_batch": statistics.median(a / b for a, b in zip(values, raw))
                  for name, values in speeds.items() if values is not raw}
        settings = Settings(task, (str(path), None, None), 0.05, tokenizer, tokenizer.vocab_size)
        found |= cached_and_collated(path, settings, Path(folder) / "cache")
    found["setting"] = {**machine(), "rounds": rounds}
    return found | {f"padding, batches of {size}, at most {longest or 'any'} tokens": padding(size, longest)
                    for size in (8, 16) for longest in (256, 512, None)}


def write_texts(path: Path, megabytes: float) -> list[str]:
    """Pieces of source files, some with other names in them, as JSON lines of so many megabytes."""
    draw, sources = random.Random(0), [text.splitlines(keepends=True) for _, text in stdlib.sources()]
    texts: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for _ in range(100):
                lines = draw.choice(sources)
                start = draw.randrange(len(lines) + 1)
                text = "".join(lines[start:start + math.ceil(draw.lognormvariate(3.2, 0.9))])
                text = text.replace("self", f"s{draw.randrange(1000)}") if draw.random() < 0.2 else text
                if text.strip():
                    texts.append(text)
                    file.write(json.dumps({"text": text}) + "\n")
    return texts


def cached_and_collated(path: Path, settings: Settings, root: Path) -> dict[str, float]:
    """Milliseconds from a key to usable rows, and from rows to a batch; and the share of padding in packed rows."""
    data = prepare_data(settings.task, str(path), tokenizer=settings.tokenizer)
    time.sleep(SETTLED)
    cache = Cache(root, settings)
    cache.store(data)

    def opened() -> PackedRows:
        found = cache.load()
        assert found is not None
        return PackedRows(found.train.examples, ROW)

    rows = opened()
    places = range(0, min(len(rows), 50 * BATCH), 50)
    return {"cached corpus, opened, ms": milliseconds(opened, 20),
            f"batch of {BATCH} x {ROW}, collated, ms": milliseconds(lambda: data.task.collate([rows[i] for i in places]), 200),
            "padding, packed rows": 1 - len(rows.stream) / (len(rows) * ROW)}


def milliseconds(work: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def padding(size: int, longest: int | None) -> float:
    """The share of padding in an epoch of batches of 20,000 texts of log-normal lengths, 224 tokens in the mean."""
    lengths = torch.empty(20_000).log_normal_(math.log(224) - 0.9**2 / 2, 0.9, generator=torch.Generator().manual_seed(0))
    tokens = lengths.long().clamp(1, longest).tolist()
    batches = EpochBatches(len(tokens), size, 0, lengths=tokens).batches(0)
    return 1 - sum(tokens) / sum(len(batch) * max(tokens[i] for i in batch) for batch in batches)


if __name__ == "__main__":
    for name, value in measure(*map(int, sys.argv[1:3])).items():
        if name != "setting":
            print(f"{name:60} {value:10.4f}")
