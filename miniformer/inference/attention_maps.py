"""Attention maps: which weights a model's attentions gave, noted while it runs, whatever kernel they have.

While anyone notes, the attentions of the model have a kernel that looks who is running: it notes for those who asked in this
context (thread, task), and for all others it is the kernel that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from miniformer.kernel.masks import Mask
from miniformer.ops.attention_kernels import Kernel, eager, weights


@dataclass(slots=True)
class _Lent:
    """The kernel that an attention has of its own, and how many are noting what it does."""

    kernel: Kernel
    users: int = 0


_lent: WeakKeyDictionary[nn.Module, _Lent] = WeakKeyDictionary()
_lock = Lock()
_notes: ContextVar[tuple[tuple[dict[nn.Module, str], dict[str, Tensor]], ...]] = ContextVar("notes", default=())
"""Of everyone who notes in this context: the names of their attentions, and what was noted by name."""


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What is run inside notes its weights `[B, H, T, S]`, by the name of the module; the latest forward counts.

    Every module whose `kernel` is one of `ops/attention_kernels.py` takes part. One that weighs nothing by softmax (`linear`),
    or that computes it by itself, is left out. What other threads run meanwhile on the same model is not noted, and is
    computed as ever.
    """
    found: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(getattr(module, "kernel", None), Kernel)}
    with _lock:
        for module in names:
            if module not in _lent:
                _lent[module] = _Lent(own := module.kernel)
                module.kernel = replace(own, compute=_noting(module, own))
            _lent[module].users += 1
    token = _notes.set((*_notes.get(), (names, found)))
    try:
        yield found
    finally:
        with _lock:
            for module in names:
                lent = _lent[module]
                lent.users -= 1
                if not lent.users:
                    module.kernel = _lent.pop(module).kernel
        _notes.reset(token)


def _noting(module: nn.Module, own: Kernel) -> Any:
    """The function of a kernel that notes for those who asked in the context that runs it."""
    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None = None, *, dropout: float = 0.0,
                **asked: Any) -> Tensor:
        asking = [(names[module], found) for names, found in _notes.get() if module in names]
        if not asking:
            return own.compute(q, k, v, mask, bias, **({"dropout": dropout} if dropout else {}), **asked)
        noted = weights(q, k, mask, bias, **asked).detach()
        for name, found in asking:
            found[name] = noted
        return eager(q, k, v, mask, bias, dropout=dropout, **asked)

    return compute
