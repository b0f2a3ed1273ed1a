"""The measurements: training, decoding, and the matrix product of the machine.

Each runs in a process of its own, so that peak memory is that of one contestant in one measurement. Between its turns the
process waits.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from miniformer.kernel.errors import MiniformerError
from miniformer.kernel.out_of_memory import memory_errors
from miniformer.train.train_config import TrainConfig

from .contestant import ENDLESS, Setting, batches, new_model, tokens_of
from .rounds import Sample

WARM_UP = 2
"""Steps before the first that counts. In them memory is allocated and kernels are chosen."""
GEMM, GEMM_GPU = 2048, 8192
"""Width of the square matrices whose product measures the peak rate of a CPU and a GPU: large enough to keep it busy."""


def work(channel: Connection, measured: str, config: TrainConfig | None, setting: Setting) -> None:
    """The main function of a measuring process: send None once ready, then a `Sample` for each (seconds, rows) received.

    Args:
        channel: the connection to the contest; the process ends when it is closed. An error is sent as text and exit code.
        measured: `train`, `decode` or `gemm`.
        config: a completed run; None for `gemm`.
    """
    sys.stdout = sys.stderr  # what components print is no part of the figures
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the contest ends this one
    try:
        with memory_errors("a smaller --batch-size or --length needs less"):
            WORK[measured](channel, config, setting)
    except MiniformerError as error:
        channel.send((str(error), error.exit_code))
    except EOFError:  # the contest has closed the channel
        pass
    except Exception as error:
        channel.send((f"{type(error).__name__}: {str(error) or 'no more is said'}", 1))


def train(channel: Connection, config: TrainConfig, setting: Setting) -> None:
    """Tokens trained on per second, in Lightning's loop as in a run, but without writing files or evaluating."""
    import pytorch_lightning as pl

    from miniformer.train.module import MiniFormerLitModule
    from miniformer.train.trainer import lightning_trainer, quiet_lightning

    class Turns(pl.Callback):
        """Times the steps of a turn, then waits for the next turn."""

        seconds, tokens, start = 0.0, 0, 0.0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
            if batch_index + 1 < WARM_UP:
                return
            if batch_index + 1 == WARM_UP:
                channel.send(None)
            else:
                self.tokens += tokens[batch_index % len(tokens)]
                if perf_counter() - self.start < self.seconds:
                    return
                settled()
                channel.send(Sample(self.tokens / (perf_counter() - self.start), peak_bytes()))
            self.seconds, _ = channel.recv()
            self.tokens, self.start = 0, perf_counter()

    with quiet_lightning():
        train_batches = batches(config, setting)
        tokens = [tokens_of(batch) for batch in train_batches]
        module = MiniFormerLitModule(config)
        trainer = lightning_trainer(config, Path(tempfile.gettempdir()), ENDLESS, [Turns()], logger=False,
                                    enable_progress_bar=False, accelerator="auto", devices=1)  # it writes nothing
        trainer.fit(module, islice(cycle(train_batches), ENDLESS))


def decode(channel: Connection, config: TrainConfig, setting: Setting) -> None:
    """Tokens written per second, greedily and always to the end of a text; the pass over the prompt is included."""
    model = new_model(config).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16 if setting.decode_precision == "bf16" else None)
    new = setting.length - setting.prompt
    sizes = model.config

    def write(rows: int, count: int) -> int:
        prompts = torch.randint(sizes.vocab_size, (rows, setting.prompt))
        model.generate(prompts, count, do_sample=False, eos_id=-1)  # no token has id -1, so no text ends early
        return rows * count

    write(1, WARM_UP)
    _answer(channel, lambda rows: write(rows, new))


def gemm(channel: Connection, config: None, setting: Setting) -> None:
    """Floating-point operations per second of one large matrix product in the precision of training."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    size = GEMM if device == "cpu" else GEMM_GPU
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply(_: int) -> int:
        torch.mm(left, right)
        return 2 * size**3

    multiply(1)
    _answer(channel, multiply)


def _answer(channel: Connection, do: Callable[[int], int]) -> None:
    """For each (seconds, rows) received, call `do(rows)` repeatedly for so long, and send its units per second."""
    channel.send(None)
    while True:
        (seconds, rows), units = channel.recv(), 0
        settled()
        start = perf_counter()
        # at least once, however short the turn
        while (spent := perf_counter() - start) < seconds or units == 0:
            units += do(rows)
            settled()
        channel.send(Sample(units / spent, peak_bytes()))


def settled() -> None:
    """Wait until the GPU has finished its work: calls return before it has. Without a GPU, do nothing."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The peak memory of this process: on a GPU that of its tensors there, otherwise its resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss: it starts at the peak of the parent process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


WORK: dict[str, Callable[[Connection, Any, Setting], None]] = {"train": train, "decode": decode, "gemm": gemm}
