"""What a run says before its first step."""

import io

import pytest
from rich.console import Console

from miniformer.train.progress import say_steps
from miniformer.train.train_config import TrainConfig


def said(processes=1, **fields):
    console = Console(file=io.StringIO(), width=300)
    say_steps(console, TrainConfig(batch_size=16, **fields), processes)
    return console.file.getvalue()


@pytest.mark.parametrize(("processes", "accumulated", "step"), [
    (2, 1, "a step has 32 rows"), (4, 1, "a step has 64 rows"), (2, 3, "a step of 3 batches each has 96 rows")])
def test_of_several_processes_each_has_batches_of_its_own(processes, accumulated, step):
    assert said(processes, accumulate_grad_batches=accumulated) == (
        f"{processes} processes, each with its own batches of batch_size = 16: {step}\n")


def test_of_one_process_nothing_is_said():
    assert said() == ""


def test_it_is_told_that_compiling_takes_a_while():
    assert said(compile=True) == (
        "compiling the layers, in the first step and the first measurement: half a minute to a few minutes\n")
