"""Miniformer as its users run it: training in Lightning's loop, decoding by `model.generate` and by `Engine`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor

from miniformer.bench import work
from miniformer.bench.contestant import MadeUp, Setting, account, batches, completed
from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.kernel import Context, Entry, FeedForward, OptimizerRecipe, Registry, discover, use_registry
from miniformer.kernel.spec import build
from miniformer.model.transformer import Transformer
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.train_config import TrainConfig

from . import nanogpt
from .measuring import DEVICE, LR, PROMPT, WEIGHT_DECAY, steps
from .peers import Write
from .sizes import Size

Family = Literal["gpt2", "llama", "plugin"]


class PluginFeedForward(FeedForward):
    """The feed-forward of `nanogpt`, the very same module, as a component of somebody else's package."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.inner = nanogpt.FeedForward(d_model, d_ff)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.inner(x)


PLUGIN = Entry("ffn", "inline", f"{__name__}:PluginFeedForward", distribution="benchmark-parts", version="0")
GPT2 = {"attention": {"name": "mha", "bias": True}, "position": "learned", "ffn": {"name": "gelu", "bias": True},
        "norm": "layernorm"}
LLAMA = {"attention": "rope-mha", "ffn": "swiglu", "norm": "rmsnorm"}
PARTS: dict[str, dict[str, Any]] = {"gpt2": GPT2, "llama": LLAMA, "plugin": {**GPT2, "ffn": "inline"}}


def fields(family: Family, size: Size, max_seq_len: int) -> dict[str, Any]:
    """The model's config: GPT-2's or Llama's parts in a size."""
    return {"vocab_size": size.vocab_size, "d_model": size.d_model, "n_heads": size.n_heads, "n_layers": size.n_layers,
            "d_ff": size.gated_d_ff if family == "llama" else size.d_ff, "max_seq_len": max_seq_len, "causal": True,
            **PARTS[family]}


def run_of(family: Family, size: Size, precision: Any, compiled: bool = False) -> tuple[TrainConfig, Setting]:
    """The run that trains it, completed without data."""
    setting = Setting(batch_size=size.batch_size, length=size.length, precision=precision, decode_precision=32)
    options = {"compile": True} if compiled else {}
    run = TrainConfig(model_config=fields(family, size, size.length), lr=LR, weight_decay=WEIGHT_DECAY, **options)
    return completed(run, setting), setting


@contextmanager
def plugin() -> Iterator[None]:
    """With `PLUGIN` installed."""
    with use_registry(Registry([*discover(), PLUGIN])):
        yield


def train(channel: Connection, size: Size, precision: Any, compiled: bool, family: Family) -> None:
    """As `miniformer bench` measures it: `MiniFormerLitModule` in Lightning's loop."""
    with plugin():
        work.train(channel, *run_of(family, size, precision, compiled))


def train_in_raw_loop(channel: Connection, size: Size, precision: Any, compiled: bool, family: Family) -> None:
    """The same module, task and optimizer in a plain loop."""
    run, setting = run_of(family, size, precision)
    module = MiniFormerLitModule(run).to(DEVICE)
    made = [module.transfer_batch_to_device(batch, torch.device(DEVICE), 0) for batch in batches(run, setting)]
    recipe = build(OptimizerRecipe, run.optimizer, run.lr, run.weight_decay)

    def loss(i: int) -> Tensor:
        batch = made[i % len(made)]
        term = module.model.read(batch, readout=lambda hidden, head: module.task.loss(hidden, head, batch))
        return term.sum / term.weight

    steps(channel, loss, recipe.build(recipe.groups(module.model)), size, precision)


@cache
def flops_per_token(family: Family, size: Size) -> int:
    """Of a forward pass over a training row, as the spec counts it."""
    flops = account(*run_of(family, size, 32)).flops_per_token
    assert flops is not None
    return flops


@cache
def read_per_step(family: Family, size: Size, rows: int, length: int) -> int:
    """Bytes that a step of decoding in fp32 has to read: every matrix and vector once, and the cache of `length` tokens."""
    config = TransformerConfig(**fields(family, size, length))
    positions = size.d_model * length if family != "llama" else 0  # of which one row is read
    return 4 * (config.parameter_count() - positions) + config.state_bytes(rows, length)


def decode(size: Size, length: int, threads: int, family: Family = "gpt2") -> Write:
    """By `model.generate`."""
    model = Transformer(TransformerConfig(**fields(family, size, length))).eval()
    return lambda ids, count: model.generate(ids, count, do_sample=False, eos_id=-1)


def decode_compiled(size: Size, length: int, threads: int, family: Family = "gpt2") -> Write:
    """By `Engine`, which compiles the model's step."""
    model = Transformer(TransformerConfig(**fields(family, size, length))).eval()
    tokenizer, greedy = MadeUp(size.vocab_size, PROMPT), Sampling(0.0)
    engine = Engine(model, tokenizer, compile=True)  # type: ignore[call-arg]

    def write(ids: Tensor, count: int) -> Tensor:
        answers = engine.generate([f"text {b}" for b in range(len(ids))], greedy, max_new_tokens=count)
        return torch.cat([ids, ids.new_tensor([answer.tokens for answer in answers])], dim=1)

    return write


TRAIN_COMPILES = "compile" in TrainConfig.model_fields
DECODE_COMPILES = "compile" in inspect.signature(Engine.__init__).parameters
