"""What a process measures when it is asked, here in this one."""

import itertools

import pytest
from fake_pipe import Channel

from miniformer.bench import work as module
from miniformer.bench.contestant import Setting, completed
from miniformer.bench.rounds import Sample
from miniformer.kernel import RunError, SpecError
from miniformer.train.train_config import TrainConfig

SETTING = Setting(batch_size=2, length=16, precision=32, decode_precision=32)
MODEL = {"vocab_size": 50, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}


@pytest.fixture(autouse=True)
def _interruptible(monkeypatch):
    monkeypatch.setattr(module.signal, "signal", lambda *args: None)


@pytest.mark.parametrize("measured", ["train", "decode", "gemm"])
def test_it_is_ready_and_then_gives_a_sample_each_time(measured):
    channel = Channel((0.01, 1), (0.01, 2))
    module.work(channel, measured, completed(TrainConfig(model_config=MODEL), SETTING), SETTING)
    ready, *samples = channel.said
    assert ready is None and len(samples) == 2
    assert all(isinstance(sample, Sample) and sample.rate > 0 and sample.peak_bytes > 2**20 for sample in samples)


def test_decoding_is_of_whole_texts(monkeypatch):
    asked = []
    monkeypatch.setattr("miniformer.model.transformer.Transformer.generate",
                        lambda model, ids, count, **settings: asked.append((*ids.shape, count, settings)))
    module.work(Channel((1e-9, 3)), "decode", completed(TrainConfig(model_config=MODEL), SETTING), SETTING)
    assert asked[-1] == (3, 4, 12, {"do_sample": False, "eos_id": -1})


def test_a_rate_of_decoding_counts_the_tokens_of_all_rows(monkeypatch):
    monkeypatch.setattr("miniformer.model.transformer.Transformer.generate", lambda *args, **settings: None)
    monkeypatch.setattr(module, "perf_counter", itertools.count().__next__)  # a second at each look
    channel = Channel((1e-9, 3))
    module.work(channel, "decode", completed(TrainConfig(model_config=MODEL), SETTING), SETTING)
    assert channel.said[-1].rate == 3 * 12 / 2  # one text of 12 tokens a row, between three looks at the clock


@pytest.mark.parametrize(("error", "said"), [(SpecError("no such thing"), ("no such thing", 2)),
                                             (RunError("the loss is nan"), ("the loss is nan", 1)),
                                             (ZeroDivisionError("by zero"), ("ZeroDivisionError: by zero", 1))])
def test_what_goes_wrong_is_sent(monkeypatch, error, said):
    def fail(*args):
        raise error

    monkeypatch.setitem(module.WORK, "train", fail)
    channel = Channel()
    module.work(channel, "train", None, SETTING)
    assert channel.said == [said]
