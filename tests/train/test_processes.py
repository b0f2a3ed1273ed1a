"""What is told of a process of a run that died."""

import pytest

from miniformer.train.processes import death_of, why_a_process_died


def missed(text, cause=None):
    error = RuntimeError(text)
    error.__cause__ = cause
    return error


KILLED = "DataLoader worker (pid 12) is killed by signal: Killed. "
BUS = ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared "
       "memory. Please try to raise your shared memory limit.")
GONE = "DataLoader worker (pid(s) 12, 13) exited unexpectedly"


@pytest.mark.parametrize(("error", "told"), [
    (missed(KILLED), "pid 12, which made batches, was killed by SIGKILL; the system does this when memory runs out"),
    (missed(BUS), "was killed by SIGBUS; shared memory has run out"),
    (missed(GONE), "pid 12, 13, which made batches, ended unexpectedly; with num_workers 0 the run makes its batches itself"),
    (missed(GONE, missed(KILLED)), "pid 12, which made batches, was killed by SIGKILL"),
    (missed("something else", missed(GONE)), "ended unexpectedly")])
def test_a_worker_that_died_is_told_with_its_signal_and_what_helps(error, told):
    assert told in why_a_process_died(error)


@pytest.mark.parametrize("error", [missed("mat1 and mat2 shapes cannot be multiplied"), ValueError(KILLED), KeyboardInterrupt(),
                                   missed("[pair.cc:534] Connection closed by peer [127.0.0.1]:4132")])
def test_other_errors_are_left_alone(error):
    assert why_a_process_died(error) == ""


def test_a_process_that_misses_another_one_of_its_run_says_so(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = why_a_process_died(missed("[pair.cc:534] Connection closed by peer [127.0.0.1]:4132"))
    assert told.startswith("another process of this run has ended, and its own message says why; ")


def test_an_exit_code_says_how_a_process_ended():
    assert [death_of(code) for code in (3, -9, -250, None)] == [
        "ended with exit code 3", "was killed by SIGKILL", "was killed by signal 250", "ended with exit code None"]
