"""The comparison with peers: that it runs with whoever is installed, that they are alike, and that its figures are right."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from depth import thorough
from fake_device import device
from fake_pipe import Channel
from plain_step import plain_step

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where `python -m tests.benchmarks` is run

from miniformer.bench.rounds import Sample  # noqa: E402
from miniformer.train.specs import best_precision  # noqa: E402
from tests.benchmarks import contest, goals, measuring, nanogpt, ours, peers, pictures, processes, report  # noqa: E402
from tests.benchmarks.contestants import CONTESTANTS, chosen  # noqa: E402
from tests.benchmarks.figures import beside, rows_of, utilisation  # noqa: E402
from tests.benchmarks.measuring import decoding, steps  # noqa: E402
from tests.benchmarks.processes import Failed, Pool  # noqa: E402
from tests.benchmarks.sizes import SIZES, Size  # noqa: E402

SMALL = Size("small", 2, 48, 2, 64, 2, 16)


def row(name, *rates, peak=100, **more):
    return {"name": name, "ours": name.startswith("miniformer"), "peak_bytes": peak * 2**20, "threads": None, "cached": True,
            "flops_per_token": 10, "cores": [], "rates": {name: list(rates) for name in ("whole", "first", "steady")}, **more}


def cell(*rows, **setting):
    size = {"n_layers": 1, "d_model": 8, "n_heads": 2, "vocab_size": 64, "batch_size": 2, "length": 50}
    return {"setting": {"size": size, "precision": 32, "threads": 2, "per_cpu_second": False, "rounds": 3, "seconds": 1.0,
                        "processor": "made up", "abilities": [], "cores": 2, "versions": {}, **setting}, "rows": list(rows)}


@thorough
@pytest.mark.slow
def test_everyone_who_is_installed_runs(tmp_path):
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"train": {"kept": {"rows": []}}}))
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks", "--quick", "--out", str(out)], cwd=ROOT,
                          capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    train = f"tiny {'bf16' if best_precision() == 'bf16' else 'fp32'}"
    assert list(found["train"]) == ["kept", train]
    for part, name in (("train", train), ("decode", "tiny x 2")):
        there = {one["name"] for one in rows_of(found[part][name], "whole")}
        assert there == {one.name for one in CONTESTANTS if getattr(one, part) is not None and not one.missing}
    left_out = re.findall(r"^([\w-]+): left out, ", done.stderr, re.M)
    assert {one.name for one in CONTESTANTS if one.missing} == set(left_out)
    assert {one["name"] for one in found["overhead"]["tiny"]["rows"]} == {"trainer", "raw loop"}
    assert 0 < found["startup"]["train"]["output"] <= found["startup"]["train"]["first_step"]
    assert str(ROOT) not in out.read_text()


@pytest.mark.parametrize(("name", "needed"), [
    ("nanogpt", "torch"), ("gpt2", "transformers"), ("llama", "transformers"), ("litgpt_neox", "litgpt"),
    ("litgpt_llama", "litgpt"), ("x_transformers", "x_transformers")])
def test_peers_are_as_large_as_ours(name, needed):
    pytest.importorskip(needed)
    size = SIZES["S"]
    model, _ = getattr(peers, f"train_{name}")(size)
    family = "llama" if "llama" in name else "gpt2"
    own = ours.TransformerConfig(**ours.fields(family, size, size.length)).parameter_count()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(own, rel=0.02)


def test_nanogpt_is_the_same_function_as_ours():
    torch.manual_seed(0)
    theirs = nanogpt.NanoGPT(SMALL, 32).eval()
    mine = ours.Transformer(ours.TransformerConfig(**ours.fields("gpt2", SMALL, 32))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        take(mine, theirs)
    ids = torch.randint(SMALL.vocab_size, (2, 16))
    assert torch.equal(mine.generate(ids, 12, do_sample=False, eos_id=-1), theirs.write(ids, 12))


def take(mine, theirs):
    """Give our GPT-2-like decoder the weights of `nanogpt`."""
    found = {"embedding.weight": theirs.tokens.weight, "stack.positions.0.table.weight": theirs.positions.weight}

    def note(name, layer, rows=slice(None)):
        found.update({f"{name}.weight": layer.weight[rows], f"{name}.bias": layer.bias[rows]})

    D = theirs.tokens.weight.shape[1]
    for i, block in enumerate(theirs.blocks):
        note(f"stack.blocks.{i}.attention.q", block.attention.qkv, slice(D))
        note(f"stack.blocks.{i}.attention.kv", block.attention.qkv, slice(D, None))
        for name, layer in (("attention.out", block.attention.out), ("ffn.up", block.ffn.up), ("ffn.down", block.ffn.down),
                            ("norm_attention", block.attention_norm), ("norm_ffn", block.ffn_norm)):
            note(f"stack.blocks.{i}.{name}", layer)
    note("stack.norm", theirs.norm)
    own = dict(mine.named_parameters())
    assert set(found) == set(own)
    for name, value in found.items():
        own[name].copy_(value)


def test_onnx_runtime_writes_what_the_decoder_writes_that_it_was_made_of():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.benchmarks import onnx_runtime

    source = nanogpt.NanoGPT(SMALL, 40).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(SMALL.vocab_size, (3, 8))
    assert torch.equal(onnx_runtime.writer(source, 1)(ids, 20), source.write(ids, 20))


@pytest.mark.parametrize("make", [peers.decode_nanogpt, ours.decode, ours.decode_compiled])
def test_everyone_writes_where_the_device_is(monkeypatch, make):
    monkeypatch.setattr(measuring, "DEVICE", "meta")
    monkeypatch.setattr("miniformer.inference.engine.compiled_step", lambda: plain_step)
    channel = Channel((0.01, 1))
    with device(), pytest.raises(EOFError):
        measuring.decoding(channel, make, SMALL, rows=2, new=4, threads=1, cached=True, warm_up=1)
    ready, samples = channel.said
    assert ready is None and samples["whole"].rate > 0


def test_a_plain_loop_trains():
    losses, (model, loss) = [], peers.train_nanogpt(SMALL)
    ids = torch.arange(17).repeat(2, 1)

    def noted(i):
        losses.append(loss(model, ids))
        return losses[-1]

    channel = Channel((0.3, 1))
    with pytest.raises(EOFError):
        steps(channel, noted, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True), SMALL, 32)
    ready, sample = channel.said
    assert ready is None and sample.rate > 0 and losses[-1] < losses[0] / 2


@pytest.mark.parametrize(("cached", "asked"), [(True, [(64, 1), (64, 10), (64, 1), (64, 1), (64, 1), (64, 40)]),
                                               (False, [(64, 1), (64, 10), (64, 1), (64, 1), (64, 1), (80, 8)])])
def test_decoding_is_of_whole_texts_and_without_a_cache_of_their_middle(cached, asked):
    calls = []

    def make(size, length, threads):
        assert (length, threads) == (104, 1)

        def write(ids, count):
            calls.append((ids.shape[1], count))
            return torch.cat([ids, ids[:, :count]], dim=1)
        return write

    channel = Channel((0, 1))
    with pytest.raises(EOFError):
        decoding(channel, make, SMALL, 2, 40, 1, cached, 10)
    assert calls == asked and set(channel.said[1]) == {"whole", "first", "steady"}


class FakeWorker:
    """Measures nothing, and takes as much memory as it is asked for seconds."""

    def __init__(self, measure, threads, method):
        self.measure = measure
        measure("started")

    def ask(self, seconds):
        if seconds < 0:
            raise Failed("no such thing")
        return {"whole": Sample(1.0, seconds)}, None

    def end(self):
        self.measure("ended")


@pytest.fixture
def pool(monkeypatch):
    """A pool that may take ten bytes, and what happened to its workers."""
    monkeypatch.setattr(processes, "Worker", FakeWorker)
    monkeypatch.setattr(processes, "free_bytes", lambda: 10 / processes.PART_OF_MEMORY)
    happened = []
    with Pool() as pool:
        yield lambda name, size: pool.ask(name, lambda what: happened.append(f"{name} {what}"), 1, size), happened


def test_a_pool_ends_whoever_was_asked_longest_ago_when_memory_is_short(pool):
    ask, happened = pool
    for name in "abca":
        ask(name, 3)
    assert happened == ["a started", "b started", "c started"]
    ask("d", 3)
    assert happened[3:] == ["b ended", "d started"]


def test_a_worker_that_fails_is_ended(pool):
    ask, happened = pool
    with pytest.raises(Failed, match="no such thing"):
        ask("a", -1)
    assert happened == ["a started", "a ended"]


def broken(channel):
    raise ValueError("no such thing")


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told():
    with Pool() as pool, pytest.raises(Failed, match="ValueError: no such thing"):
        pool.ask("a", broken, 1, 0.1)


def test_a_cell_has_everyone_s_rounds_and_tells_who_failed(monkeypatch):
    def ask(self, name, measure, threads, seconds):
        if name == "2":
            raise Failed("no such thing")
        return {"whole": Sample(100.0 * (1 + int(name)), 7)}, (0.5, 1.2)

    monkeypatch.setattr(Pool, "ask", ask)
    told = []
    found = contest.train(SMALL, 32, False, chosen(["nanogpt", "hf-gpt2"]), contest.Effort(2, 1.0, threads=1, told=told.append))
    machine, plain, gpt2 = found["rows"]
    assert (machine["name"], plain["name"], plain["rates"]) == ("machine", "nanogpt", {"whole": [400.0, 400.0]})  # a CPU second
    assert plain["cores"] == [[0.5, 1.2]] * 2 and gpt2["failed"] == "no such thing" and told == ["hf-gpt2: no such thing"]
    assert utilisation(plain, found) == pytest.approx(3 * plain["flops_per_token"] * 400 / 200)


def test_a_contestant_counts_with_the_threads_that_suit_it():
    found = cell(row("a", 1, 1, 9, threads=1), row("a", 2, 2, 2, threads=2), row("b", 1, 3, 1))
    assert [(one["name"], one["threads"]) for one in rows_of(found, "whole")] == [("a", 2), ("b", None)]


def test_ratios_are_of_the_same_rounds():
    assert beside(row("a", 10, 1, 30), row("b", 5, 1, 10)) == (2, 1, 3)


BEST, INLINE, PEAK = (f"training S bf16: {what}" for what in (
    "the best peer", "a plugin's part, the same code inline", "peak memory, every peer"))
LOOP, START = "Lightning's loop, {}: the same step in a plain loop", "start of `miniformer train`"


@pytest.mark.parametrize(("goal", "found", "value", "met"), [
    (BEST, cell(row("miniformer-gpt2", 12), row("miniformer-plugin", 99), row("nanogpt", 10)), 1.2, True),
    (BEST, cell(row("miniformer-gpt2", 11), row("nanogpt", 9), row("hf-gpt2", 10)), 1.1, False),
    (INLINE, cell(row("miniformer-plugin", 96), row("nanogpt", 100)), 0.96, True),
    (PEAK, cell(row("miniformer-gpt2", 1, peak=90), row("nanogpt", 1, peak=100)), 0.9, True),
    ("decoding M x 8: litgpt", cell(row("miniformer-llama", 12), row("litgpt-neox", 10), row("nanogpt", 99)), 1.2, False),
    ("decoding M x 8, compiled: what memory lets through",
     cell(row("machine", 1000), row("miniformer-gpt2-compiled", 80, bytes_per_step=80), rows=8), 80, True),
    (LOOP.format("S"), cell(row("trainer", 980), row("raw loop", 1000)), 2.0408, False),
    (LOOP.format("XS"), cell(row("trainer", 98_000), row("raw loop", 100_000)), 0.0204, True),
    (f"{START}: first output", {"output": 0.31}, 0.31, False),
    (f"{START} without its data: importing torch and Lightning", {"startup": 2.2, "imports": 2.0}, 1.1, True),
    ("padding, language modelling", {"padding, packed rows": 0.005}, 0.005, True),
    ("padding, language modelling", {}, None, None),
])
def test_goals(goal, found, value, met):
    one = next(one for one in goals.GOALS if one.what == goal)
    verdict = one.verdict({one.part: {one.cell: found}})
    assert verdict.met is met and (value is None or verdict.value == pytest.approx(value, rel=1e-3))


def test_goals_are_told_apart():
    assert len({goal.what for goal in goals.GOALS}) == len(goals.GOALS)
    names = {one.name for one in CONTESTANTS} | set(goals.COMPILED)
    assert {*goals.EAGER, *goals.LITGPT, *goals.HF} <= names


@pytest.mark.parametrize("name", ["performance", "performance-avx2"])
def test_the_page_of_performance_is_what_was_measured(name):
    results = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    drawn = {part: f"{name}-{added}.svg" for part, added in pictures.PICTURES.items()}
    assert all((ROOT / "docs" / picture).exists() for picture in drawn.values())
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert page.partition(report.MARK)[1:] == (report.MARK, report.document(results, drawn).removeprefix(report.MARK))


def test_what_stands_before_the_mark_is_kept_and_pictures_are_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    results = {"train": {"S bf16": cell(row("miniformer-gpt2", 1, 2), row("nanogpt", 2, 1))}}
    (tmp_path / "found.json").write_text(json.dumps(results))
    seen = []
    (tmp_path / "page.md").write_text("# By hand\n")
    for _ in range(2):
        report.main(str(tmp_path / "found.json"), str(tmp_path / "page.md"))
        seen.append({path.name: path.read_bytes() for path in tmp_path.glob("p*")})
    assert seen[0] == seen[1] and seen[0].keys() == {"page.md", "page-training.svg"}
    page = seen[0]["page.md"]
    assert page.startswith(b"# By hand\n\n" + report.MARK.encode()) and b"page-training.svg" in page
