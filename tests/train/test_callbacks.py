"""Signals and unwritable places, with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import miniformer
from miniformer.kernel import Interrupted
from miniformer.train import callbacks
from miniformer.train.callbacks import BestModel, StopOnSignal
from miniformer.train.module import MiniFormerLitModule


@pytest.fixture
def running(tmp_path, texts, tiny):
    """A run that would go on for hours, past its first steps and before any measurement."""
    process = subprocess.Popen([sys.executable, "-m", "miniformer", "train", "--train-path", str(texts), "--max-steps",
                                "2000", "--val-every", "2000", "--experiment-name", "long", *tiny], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step "):
            break
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(("signum", "code", "name"), [
    (signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")])
def test_a_signal_saves_and_stops_with_its_exit_code(running, tmp_path, signum, code, name):
    running.send_signal(signum)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert f"error: {name}: stopped at step " in errors
    assert "Traceback" not in errors
    step = int(errors.partition("stopped at step ")[2].partition(";")[0])
    state = torch.load(tmp_path / "runs" / "long" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == step > 0
    assert MiniFormerLitModule.load_from_checkpoint(tmp_path / "runs" / "long" / "checkpoints" / "last.ckpt").model
    record = json.loads((tmp_path / "runs" / "long" / "run.json").read_text())
    assert (record["status"], record["step"], record["signal"]) == ("stopped", step, signal.Signals(signum).name)
    assert "no model was measured before, so the one of this step is in" in errors
    assert type(miniformer.load(tmp_path / "runs" / "long").generate("the", max_new_tokens=2)) is str


def test_a_signal_after_a_measurement_leaves_the_best_model_as_it_is(tmp_path):
    written, saved = [], []
    best = BestModel(tmp_path, "val_loss", True, {}, None)
    best.best, best.write = {"val_loss": 1.0, "step": 2.0}, lambda *_: written.append(1)
    stop = StopOnSignal(tmp_path, best)
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted, match=r"SIGTERM: stopped at step 3; the best model so far, of step 2, is in .*best_model; "
                       r"weights and optimizer of this step are in .*last.ckpt, which MiniFormerLitModule"):
        stop._stop(SimpleNamespace(save_checkpoint=saved.append, global_step=3), None)
    assert len(saved) == 1 and not written


def test_a_run_that_is_to_outlive_its_terminal_ignores_that_it_is_closed(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stop = StopOnSignal(tmp_path, None)
    try:
        stop.on_train_start(None, None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == stop._note
    finally:
        stop.teardown(None, None, "fit")
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before, failed = signal.getsignal(signal.SIGTERM), []

    def start():
        try:
            StopOnSignal(tmp_path, None).on_train_start(None, None)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert not failed and signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_before_training_ends_at_once(tmp_path, texts):
    fifo = tmp_path / "slow.jsonl"
    os.mkfifo(fifo)  # data that never comes
    process = subprocess.Popen([sys.executable, "-m", "miniformer", "train", "--train-path", str(fifo)], cwd=tmp_path,
                               stderr=subprocess.PIPE, text=True)
    writer = os.open(fifo, os.O_WRONLY)  # returns once the other end is open
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, errors.strip()) == (130, "interrupted")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("smaller", "measured", "kept"), [
    (True, [3.0, 2.0, 2.5], [0, 1]), (False, [3.0, 2.0, 2.5, 4.0], [0, 3]),
    (True, [float("nan"), 2.0, float("nan"), 1.0], [1, 3]), (False, [float("inf"), 2.0], [1]), (True, [float("nan")] * 2, [])])
def test_the_best_model_has_the_best_finite_measurement(tmp_path, monkeypatch, smaller, measured, kept):
    written = []
    monkeypatch.setattr(callbacks, "write_model", lambda *_: written.append(trainer.global_step))
    strategy = SimpleNamespace(lightning_module_state_dict=dict, barrier=lambda: None)
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, strategy=strategy)
    module = SimpleNamespace(hooks=SimpleNamespace(hook=SimpleNamespace(checkpoint_saved=lambda **_: None)))
    best = BestModel(tmp_path, "val_loss", smaller, {}, None)
    for trainer.global_step, value in enumerate(measured):
        trainer.callback_metrics = {"val_loss": torch.tensor(value)}
        best.on_validation_end(trainer, module)
    assert written == kept
    assert best.best.get("step") == (kept[-1] if kept else None)
