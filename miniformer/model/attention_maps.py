"""Attention maps: which weights a model's attentions gave, noted while it runs, whatever kernel they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from miniformer.kernel.masks import Mask

from .kernels import Kernel, eager, weights


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What is run inside notes its weights `[B, H, T, S]`, by the name of the module; the latest forward counts.

    Every module whose `kernel` is one of `model/kernels.py` takes part. One that weighs nothing by softmax (`linear`), or that
    computes it by itself, is left out.
    """
    found: dict[str, Tensor] = {}
    modules = {name: module for name, module in model.named_modules() if isinstance(getattr(module, "kernel", None), Kernel)}

    def noting(name: str) -> Any:
        def compute(q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None = None, *, dropout: float = 0.0,
                    **asked: Any) -> Tensor:
            found[name] = weights(q, k, mask, bias, **asked).detach()
            return eager(q, k, v, mask, bias, dropout=dropout, **asked)

        return compute

    kernels: dict[str, Any] = {name: module.kernel for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.kernel = replace(kernels[name], compute=noting(name))
        yield found
    finally:
        for name, module in modules.items():
            module.kernel = kernels[name]
