"""A contest gives everyone the same turns and tells what came of them; its processes are played here by functions."""

from contextlib import contextmanager

import pytest

from miniformer.bench import contest
from miniformer.bench.contestant import Setting
from miniformer.bench.rounds import Sample
from miniformer.config.memory import Room
from miniformer.kernel import RunError, UserError
from miniformer.train.train_config import TrainConfig

MODEL = {"vocab_size": 300, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
SETTING = Setting(batch_size=4, length=16, precision=32, decode_precision=32)
DECODER, ENCODER = (TrainConfig(task=task, model_config=MODEL) for task in ("language-modeling", "masked-lm"))


@pytest.fixture
def turns(monkeypatch):
    """What was asked of which process, in order; the second contestant is twice as fast as the first."""
    asked, alive = [], []

    @contextmanager
    def process(name, measured, config, setting):
        alive.append(name)

        def ask(seconds, rows):
            asked.append((name, measured, rows, len(alive)))
            return Sample(1e12 if measured == "gemm" else 200.0 if name == "b" else 100.0, 10**6)

        yield ask
        alive.remove(name)

    monkeypatch.setattr(contest, "process", process)
    return asked


def compare(*runs, **options):
    return contest.compare(runs, SETTING, **{"rounds": 2, "seconds": 0.1, **options})


def test_everyone_trains_and_writes_in_turn(turns):
    compare(("a", DECODER), ("b", DECODER))
    training, writing = turns[:6], turns[6:]
    assert [name for name, *_ in training] == ["the machine", "a", "b", "b", "a", "the machine"]
    assert [(name, rows) for name, _, rows, _ in writing] == [(name, rows) for rows in (1, 4) for name in "abba"]
    assert {alive for *_, alive in training} == {3} and {alive for *_, alive in writing} == {2}


def test_the_figures_are_those_of_the_samples(turns):
    first, second = compare(("a", DECODER), ("b", DECODER))["contestants"]
    assert (first["train"]["ratio"], second["train"]["ratio"]) == (1, 2)
    assert second["train"]["mfu"] == pytest.approx(3 * second["flops_per_token"] * 200 / 1e12)
    assert [(entry["batch_size"], entry["ratio"]) for entry in second["decode"]] == [(1, 2), (4, 2)]


def test_who_does_not_write_is_left_out_of_decoding(turns):
    found = compare(("a", ENCODER), ("b", DECODER))["contestants"]
    assert found[0]["decode"] == [] and [entry["ratio"] for entry in found[1]["decode"]] == [1, 1]
    assert {name for name, measured, *_ in turns if measured == "decode"} == {"b"}


@pytest.mark.parametrize(("only", "done"), [("train", {"gemm", "train"}), ("decode", {"decode"})])
def test_one_of_the_two(turns, only, done):
    compare(("a", DECODER), only=only)
    assert {measured for _, measured, *_ in turns} == done


def test_nothing_to_decode_with(turns):
    with pytest.raises(UserError, match="none of these models writes"):
        compare(("a", ENCODER), only="decode")


def test_who_cannot_take_part_is_named(turns):
    with pytest.raises(UserError, match=r"^b: this model reads series of numbers"):
        compare(("a", DECODER), ("b", DECODER.with_fields(model_config={**MODEL, "input_dim": 3, "output_dim": 2})))


@pytest.mark.slow
def test_a_process_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(contest, "work", len)  # which takes no such arguments
    told = r"^mine: its worker process ended with exit code 1 while it was measured \(gemm\)"
    with contest.process("mine", "gemm", None, SETTING) as ask, pytest.raises(RunError, match=told):
        ask(0.1, 1)


def test_a_run_that_cannot_fit_is_refused_before_it_is_measured(turns, monkeypatch):
    monkeypatch.setattr("miniformer.train.cost.WORTH", 0)
    monkeypatch.setattr("miniformer.train.cost.room_for", lambda config: Room(2**10, 2**10, "this machine has"))
    with pytest.raises(UserError, match=r"^a: training needs at least .*, and this machine has 0\.00 MiB"):
        compare(("a", DECODER), only="train")
    assert not turns
