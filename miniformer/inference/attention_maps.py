"""Attention maps: the weights that a model's attentions give, noted while it runs, whatever their kernels are.

While anyone notes, the attentions have another kernel in the place of their own. It notes the weights for those who asked in
the context (thread, task) that runs it; for everyone else it calls the attention's own kernel.
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
    """An attention's own kernel, while another is in its place, and how many are noting."""

    kernel: Kernel
    users: int = 0


_lent: WeakKeyDictionary[nn.Module, _Lent] = WeakKeyDictionary()
_lock = Lock()
_notes: ContextVar[tuple[tuple[dict[nn.Module, str], dict[str, Tensor]], ...]] = ContextVar("notes", default=())
"""For each who notes in this context: the names of the attentions, and the weights that were noted, by name."""


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Note the weights `[B, H, T, S]` of all attentions that run inside, by the name of the module; the latest forward counts.

    Every module whose `kernel` is one of `ops/attention_kernels.py` takes part. An attention without softmax (`linear`), or
    with a computation of its own, is left out. If other threads run the model meanwhile, their weights are not noted, and
    they compute as always.
    """
    maps: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(getattr(module, "kernel", None), Kernel)}
    with _lock:
        for module in names:
            if module not in _lent:
                _lent[module] = _Lent(own := module.kernel)
                module.kernel = replace(own, compute=_noting(module, own))
            _lent[module].users += 1
    token = _notes.set((*_notes.get(), (names, maps)))
    try:
        yield maps
    finally:
        with _lock:
            for module in names:
                lent = _lent[module]
                lent.users -= 1
                if not lent.users:
                    module.kernel = _lent.pop(module).kernel
        _notes.reset(token)


def _noting(module: nn.Module, own: Kernel) -> Any:
    """The function of the kernel in the place of `own`; it notes for those who asked in the context that runs it."""

    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None = None, *, dropout: float = 0.0,
                **options: Any) -> Tensor:
        note_books = [(names[module], maps) for names, maps in _notes.get() if module in names]
        if not note_books:
            return own.compute(q, k, v, mask, bias, **({"dropout": dropout} if dropout else {}), **options)
        noted = weights(q, k, mask, bias, **options).detach()
        for name, maps in note_books:
            maps[name] = noted
        return eager(q, k, v, mask, bias, dropout=dropout, **options)

    return compute
