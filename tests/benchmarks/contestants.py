"""Who takes part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import onnx_runtime, ours, peers
from .measuring import DEVICE, raw_loop
from .peers import Write
from .sizes import Size

Train = Callable[..., None]
"""Of a channel, a size, a precision and whether to compile; see `measuring.raw_loop`."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: of the row; ours start with `miniformer`.
        family: whose parts it has, so that its FLOPs are known.
        packages: modules that it needs.
        train: measures training; None: it does not train.
        decode: makes what writes, of a size, the most tokens of a text, and a number of threads; None: it does not write.
        compiles: which of `train` and `decode` may be compiled; the latter is then always.
        warm_up: tokens that it writes before it is measured.
        cached: decodes with a cache.
        on_gpu: runs where everyone does; otherwise it takes part on the CPU alone.
    """

    name: str
    family: ours.Family
    packages: tuple[str, ...] = ()
    train: Train | None = None
    decode: Callable[[Size, int, int], Write] | None = None
    compiles: bool = True
    warm_up: int = 8
    cached: bool = True
    on_gpu: bool = True

    @property
    def ours(self) -> bool:
        return self.name.startswith("miniformer")

    @property
    def missing(self) -> list[str]:
        """What it lacks here: packages that are not installed, a way to use the GPU."""
        packages = [f"{name} is not installed" for name in self.packages if importlib.util.find_spec(name) is None]
        return packages + ["it runs on the CPU alone"] * (DEVICE != "cpu" and not self.on_gpu)


def _raw(make: Callable[[Size], peers.Trainable]) -> Train:
    return partial(raw_loop, make=make)  # which is all that its process imports, so that memory is a peer's own


HF, LIT, XT, ORT = ("transformers",), ("litgpt", "lightning"), ("x_transformers",), ("onnxruntime", "onnx")
CONTESTANTS: Sequence[Contestant] = (
    Contestant("miniformer-gpt2", "gpt2", train=partial(ours.train, family="gpt2"), decode=partial(ours.decode, family="gpt2"),
               compiles=ours.TRAIN_COMPILES),
    Contestant("miniformer-llama", "llama", train=partial(ours.train, family="llama"),
               decode=partial(ours.decode, family="llama"), compiles=ours.TRAIN_COMPILES),
    Contestant("miniformer-plugin", "gpt2", train=partial(ours.train, family="plugin"), compiles=ours.TRAIN_COMPILES),
    *((Contestant(f"miniformer-{family}-compiled", family, decode=partial(ours.decode_compiled, family=family), warm_up=10**6)
       for family in ("gpt2", "llama")) if ours.DECODE_COMPILES else ()),
    Contestant("nanogpt", "gpt2", train=_raw(peers.train_nanogpt), decode=peers.decode_nanogpt, cached=False),
    Contestant("hf-gpt2", "gpt2", HF, _raw(peers.train_gpt2), peers.decode_gpt2),
    Contestant("hf-llama", "llama", HF, _raw(peers.train_llama), peers.decode_llama),
    Contestant("hf-gpt2-static", "gpt2", HF, decode=partial(peers.decode_gpt2, cache="static")),
    Contestant("hf-llama-static", "llama", HF, decode=partial(peers.decode_llama, cache="static")),
    Contestant("litgpt-neox", "gpt2", LIT, _raw(peers.train_litgpt_neox), peers.decode_litgpt_neox),
    Contestant("litgpt-llama", "llama", LIT, _raw(peers.train_litgpt_llama), peers.decode_litgpt_llama),
    Contestant("x-transformers", "gpt2", XT, _raw(peers.train_x_transformers), peers.decode_x_transformers),
    Contestant("onnxruntime", "gpt2", ORT, decode=onnx_runtime.decode, on_gpu=False),
)


def chosen(names: Sequence[str]) -> list[Contestant]:
    """Those whose name is one of `names`, or starts with one; without names all."""
    return [one for one in CONTESTANTS
            if not names or any(one.name == name or one.name.startswith(f"{name}-") for name in names)]
